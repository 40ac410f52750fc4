"""What a GPU has verified: the kernel sources of this checkout against the runs recorded in ``bench/results``."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"


def verified(hashes: dict[str, str]) -> str:
    """Which of the kernels with these source hashes a recorded GPU run has passed."""
    passed = {}
    for path in sorted(RESULTS.glob("gpu-*.json")):
        result = json.loads(path.read_text())
        for name, state in result.get("kernels", {}).items():
            if state.get("tests") and state["hash"] == hashes.get(name):
                passed[name] = result["environment"]["gpu"]["name"] if state["passed"] else None
    gpus = sorted({gpu for gpu in passed.values() if gpu})
    count = sum(gpu is not None for gpu in passed.values())
    if not count:
        return "not verified on a GPU"
    return f"{'all' if count == len(hashes) else f'{count} of {len(hashes)}'} kernels verified on {', '.join(gpus)}"
