"""``python -m bench plot`` draws the pictures of the records in bench/results.

Each record that is the newest of a loss gets a picture beside it, which leaves out the losses that
have been measured again since. The pictures in docs/pictures are drawn from all records together.
Each picture holds the digest of its rows, so that ``--check`` finds those that are out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .. import scaling_model
from ..environment import ROOT
from . import MATPLOTLIB, draw, of_losses, of_ranks, predicted, ranks, ratios, sizes, style

RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs" / "pictures"
DRAWN_ELSEWHERE = {"drift_field.png", "force_generator.png"}
"""The pictures in docs/pictures that examples draw."""


class Picture(NamedTuple):
    """A committed picture: where it lies, the rows that it shows, and what draws it."""

    path: Path
    rows: list[dict]
    figure: Callable

    def digest(self) -> str:
        text = json.dumps(self.rows, sort_keys=True)
        return f"rows {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def pictures(folder: Path = RESULTS, docs: Path = DOCS) -> list[Picture]:
    """Returns the pictures that belong to the records in a folder."""
    records = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    cpu, gpu, scaling = (
        {path: record for path, record in records.items() if record.get("kind") == kind}
        for kind in ("cpu", "gpu", "scaling")
    )
    found = []
    for kept in (newest(cpu), newest(gpu)):
        for path, result in kept.items():
            found.append(
                Picture(path.with_suffix(".png"), result["rows"], partial(of_losses, result))
            )
    for path, result in scaling.items():
        if len({row["ranks"] for row in result["rows"] if row["ranks"]}) < 2:
            continue
        found.append(Picture(path.with_suffix(".png"), result["rows"], partial(of_ranks, result)))
    return found + documentation(cpu, scaling, docs)


def documentation(cpu: dict, scaling: dict, docs: Path) -> list[Picture]:
    """Returns the pictures in docs/pictures, which several records may make together."""
    found = []
    chosen = sizes.series(list(cpu.values()))
    if chosen:
        show = partial(sizes.figure, *chosen)
        found.append(Picture(docs / "time_and_memory.png", chosen[2], show))
    largest = list(newest(cpu).values())
    if largest:
        rows = [row for result in largest for row in largest_rows(result["rows"])]
        rows = sorted(rows, key=lambda row: -best(rows, row["loss"]))
        title = f"Every loss, forward + backward, fp32, on {_listed(largest)}"
        show = partial(ratios.figure, rows, title, style.provenance(largest))
        found.append(Picture(docs / "losses.png", rows, show))
    if scaling:
        rows = ranks.merged(list(scaling.values()))
        lines = style.provenance(scaling.values())
        found.append(Picture(docs / "ranks.png", rows, partial(ranks.figure, rows, lines)))
    model = scaling_model.predictions()
    show = partial(predicted.figure, model, scaling_model.assumptions())
    return [*found, Picture(docs / "gpus_predicted.png", model, show)]


def _listed(results: list[dict]) -> str:
    return " and ".join(dict.fromkeys(style.machine(r["environment"]) for r in results))


def newest(records: dict[Path, dict]) -> dict[Path, dict]:
    """Returns the results without the losses that a later result has, and without empty ones."""
    order = sorted(records, key=lambda path: (records[path]["date"], records[path]["time"]))
    last = {row["loss"]: path for path in order for row in records[path]["rows"]}
    kept = {}
    for path in order:
        rows = [row for row in records[path]["rows"] if last[row["loss"]] == path]
        if rows:
            kept[path] = records[path] | {"rows": rows}
    return kept


def largest_rows(rows: list[dict]) -> list[dict]:
    """Returns the fp32 rows of the full pass at the largest size of each loss."""
    rows = [row for row in rows if row["pass"] == "full" and row["dtype"] == "fp32"]
    size = {}
    for row in rows:
        size[row["loss"]] = max(size.get(row["loss"], ()), (row["N"], row["K"], -row["D"]))
    return [row for row in rows if size[row["loss"]] == (row["N"], row["K"], -row["D"])]


def best(rows: list[dict], loss: str) -> float:
    """Returns the largest ratio to eager of a loss."""
    return max(row["x_eager"] or 0.0 for row in rows if row["loss"] == loss)


def described(path: Path) -> str | None:
    """Returns the text "Description" in a PNG, or None."""
    data, at = path.read_bytes(), 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 8 : at + 8 + length]
        if data[at + 4 : at + 8] == b"tEXt" and body.startswith(b"Description\0"):
            return body.partition(b"\0")[2].decode("latin-1")
        at += 12 + length
    return None


def faults(found: list[Picture]) -> list[str]:
    """Returns what is out of date among the committed pictures."""
    told = []
    for picture in found:
        if not picture.path.exists():
            told.append(f"{picture.path.name} is missing")
        elif described(picture.path) != picture.digest():
            told.append(f"{picture.path.name} does not show its record")
    known = {picture.path for picture in found}
    for folder in {path.parent for path in known}:
        for path in sorted(folder.glob("*.png")):
            if path not in known and path.name not in DRAWN_ELSEWHERE:
                told.append(f"{path.name} belongs to no record: delete it")
    return told


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    p = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__.split("\n\n")[0])
    p.add_argument(
        "records",
        nargs="*",
        type=Path,
        help="JSON files, each drawn beside itself as it is (default: the pictures in "
        "bench/results and docs/pictures)",
    )
    p.add_argument(
        "--check",
        action="store_true",
        help="draw nothing; name the pictures that are out of date, and exit 1 if there are any",
    )
    return p


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    if options.check:
        told = faults(pictures())
        print("\n".join([*told, "run: python -m bench plot"] if told else ["up to date"]))
        return int(bool(told))
    if options.records:
        for path in options.records:
            picture = path.with_suffix(".png")
            print(draw(json.loads(path.read_text()), picture) or picture)
        return 0
    try:
        import matplotlib
    except ImportError:
        print(MATPLOTLIB)
        return 2
    with matplotlib.rc_context(style.RC):
        for picture in pictures():
            shown = picture.figure()
            if isinstance(shown, str):
                print(f"{picture.path.name}: {shown}")
                continue
            style.save(shown, picture.path, picture.digest())
            print(picture.path.relative_to(ROOT))
    return 0
