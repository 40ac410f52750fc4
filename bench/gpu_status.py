"""``make gpu-status``: which kernels a GPU has verified since their source last changed, from the committed results. Needs no GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .environment import ROOT, kernel_hashes

RESULTS = ROOT / "bench" / "results"


def results(folder: Path) -> list[dict]:
    """The GPU results in `folder`, oldest first."""
    read = [json.loads(path.read_text()) for path in sorted(folder.glob("gpu-*.json"))]
    return sorted(read, key=lambda result: (result["date"], result["time"]))


def status(hashes: dict[str, str], measured: list[dict]) -> dict[str, str]:
    """One line per kernel."""
    lines = {}
    for name, current in sorted(hashes.items()):
        runs = [(r, r["kernels"][name]) for r in measured if r.get("kernels", {}).get(name, {}).get("tests")]
        verified = [
            f"{r['environment']['gpu']['name']}, {r['date']}"
            for r, state in runs
            if state["hash"] == current and state["passed"]
        ]
        failed = [r for r, state in runs if state["hash"] == current and not state["passed"]]
        if verified:
            lines[name] = f"verified on {verified[-1]}"
        elif failed:
            lines[name] = f"failed on {failed[-1]['environment']['gpu']['name']}, {failed[-1]['date']}"
        elif runs:
            lines[name] = f"no GPU has run it since it changed (last run {runs[-1][0]['date']})"
        else:
            lines[name] = "never run on a GPU"
    return lines


def main() -> int:
    lines = status(kernel_hashes(), results(RESULTS))
    if not lines:
        print("no kernels")
    width = max(map(len, lines), default=0)
    for name, line in lines.items():
        print(f"{name.ljust(width)}  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
