"""What a GPU has verified: the kernel sources here, compared with the runs in ``bench/results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


class Outcome(NamedTuple):
    """How one kernel fared in one recorded run. `source` is the hash of its source."""

    when: tuple[str, str]
    gpu: str
    kernel: str
    source: str
    passed: bool


def outcomes(folder: Path | None = None) -> list[Outcome]:
    """The outcomes of all kernels that the recorded runs launched, oldest first.

    Records that are not whole are left out. What passed in a run with planned tests left is left
    out, too, because one of those may fail.
    """
    found = []
    for path in (folder or RESULTS).glob("gpu-*.json"):
        try:
            result = json.loads(path.read_text())
            when, gpu = (
                (str(result["date"]), str(result["time"])),
                str(result["environment"]["gpu"]["name"]),
            )
            kernels = list(result["kernels"].items())
            finished = (result.get("tests") or {}).get("complete") is True
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        for name, state in kernels:
            if (
                isinstance(state, dict)
                and state.get("tests")
                and isinstance(state.get("hash"), str)
            ):
                passed = state.get("passed") is True
                if finished or not passed:
                    found.append(Outcome(when, gpu, name, state["hash"], passed))
    return sorted(found, key=lambda outcome: outcome.when)


def newest(hashes: dict[str, str], recorded: list[Outcome]) -> dict[str, Outcome]:
    """The last outcome of each kernel, among the runs of the source that it has now."""
    return {
        outcome.kernel: outcome
        for outcome in recorded
        if outcome.source == hashes.get(outcome.kernel)
    }


def verified(hashes: dict[str, str]) -> str:
    """Which of the kernels with these source hashes passed when a GPU last ran them."""
    passed = [outcome for outcome in newest(hashes, outcomes()).values() if outcome.passed]
    if not passed:
        return "not verified on a GPU"
    gpus = ", ".join(sorted({outcome.gpu for outcome in passed}))
    count = "all" if len(passed) == len(hashes) else f"{len(passed)} of {len(hashes)}"
    return f"{count} kernels verified on {gpus}"
