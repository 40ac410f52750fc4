"""``python -m bench.fastest``: the faster of the verified GPU backends, by the committed results, into fused_contrastive/fastest.py."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from fused_contrastive.backends import _fastest as fastest
from fused_contrastive.backends._verified import RESULTS, newest, outcomes

from .environment import kernel_hashes
from .losses import DTYPES

TABLE = Path(fastest.__file__)
OPS = {"nt_xent": "one_set", "clip": "two_sets", "info_nce": "two_sets", "siglip": "sigmoid"}


def table(folder: Path, hashes: dict[str, str]) -> dict:
    """``{(architecture, op, dtype): {D: backend}}``: of the backends measured at most sizes, the least time (geometric mean). A backend
    counts where its kernels are those of the result and no GPU has failed them when it last ran them."""
    current = newest(hashes, outcomes(folder))
    of = {
        backend: [k for k in hashes if k.startswith("cuda/") == (backend == "cuda")]
        for backend in ("triton", "cuda")
    }
    states = {
        backend: [current[k].passed for k in kernels if k in current]
        for backend, kernels in of.items()
    }
    times: dict[tuple, dict[str, dict[tuple, float]]] = {}
    results = [json.loads(path.read_text()) for path in folder.glob("gpu-*.json")]
    for result in sorted(results, key=lambda r: (r["date"], r["time"])):
        same = [
            b
            for b in of
            if all(result["kernels"].get(k, {}).get("hash") == hashes[k] for k in of[b])
        ]
        for row in result["rows"]:
            backend, measured = (
                row["backend"],
                row["pass"] == "full" and row["loss"] in OPS and row["dtype"] != "tf32",
            )
            if measured and backend in same and states[backend] and all(states[backend]):
                dtype = str(DTYPES[row["dtype"]]).removeprefix("torch.")
                place = (
                    result["environment"]["gpu"]["capability"],
                    OPS[row["loss"]],
                    dtype,
                    row["D"],
                )
                times.setdefault(place, {}).setdefault(backend, {})[
                    row["loss"], row["N"], row["K"]
                ] = row["ms"]
    found: dict[tuple, dict[int, str]] = {}
    for (*place, D), taken in sorted(times.items()):
        scores = {b: (-len(ms), sum(map(math.log, ms.values()))) for b, ms in taken.items()}
        found.setdefault(tuple(place), {})[D] = min(scores, key=scores.get)
    return found


def generated(text: str, found: dict) -> str:
    """The module with this table."""
    lines = [
        f"    {place!r}: {backends!r},\n".replace("'", '"') for place, backends in found.items()
    ]
    return text[: text.index(" = {") + 4] + ("\n" + "".join(lines) if lines else "") + "}\n"


def main() -> int:
    TABLE.write_text(generated(TABLE.read_text(), table(RESULTS, kernel_hashes())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
