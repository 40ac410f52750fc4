"""``make gpu-status`` lists which kernels a GPU has verified since their source last changed.

It reads the committed results and needs no GPU.
"""

from __future__ import annotations

import sys

from fused_contrastive.backends._verified import Outcome, newest, outcomes

from ..environment import kernel_hashes


def status(hashes: dict[str, str], recorded: list[Outcome]) -> dict[str, str]:
    """Returns one line per kernel. The last run of a source counts."""
    current, last = newest(hashes, recorded), {outcome.kernel: outcome for outcome in recorded}
    lines = {}
    for name in sorted(hashes):
        if name in current:
            verdict = "verified" if current[name].passed else "failed"
            lines[name] = f"{verdict} on {current[name].gpu}, {current[name].when[0]}"
        elif name in last:
            lines[name] = f"no GPU has run it since it changed (last run {last[name].when[0]})"
        else:
            lines[name] = "no finished run on a GPU"
    return lines


def main() -> int:
    lines = status(kernel_hashes(), outcomes())
    if not lines:
        print("no kernels")
    width = max(map(len, lines), default=0)
    for name, line in lines.items():
        print(f"{name.ljust(width)}  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
