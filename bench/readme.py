"""``make readme`` writes the tables of the README and of docs/ between their markers.

They are made from the newest committed results.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from pathlib import Path

from fused_contrastive.backends._verified import outcomes

from . import drop_ins, model
from .environment import ROOT, kernel_hashes
from .gpu import kernel_table
from .gpu import status as gpu_status
from .losses import LOSSES
from .report import cell, milliseconds, summary, table

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RESULTS = ROOT / "bench" / "results"
UNMEASURED = {
    "cpu": "Nothing has been measured on a CPU yet.",
    "gpu": "Nothing has been measured on a GPU yet.",
}
PREFERRED = {"cpu": ("cpu", "panels"), "gpu": ("triton", "cuda", "panels")}
BASELINES = (("eager", "eager"), ("compile", "torch.compile"))


def newest(kind: str, folder: Path, loss: str = "nt_xent") -> tuple[str, dict] | None:
    """Returns ``(file name, result)`` of the latest result of this kind, or None.

    Only results count that have rows of the full pass of this loss.
    """
    found = []
    for path in folder.glob(f"{kind}-*.json"):
        result = json.loads(path.read_text())
        if chosen(result, loss):
            found.append((result["date"], result["time"], path.name, result))
    return max(found, key=lambda entry: entry[:3])[2:] if found else None


def chosen(result: dict, loss: str = "nt_xent") -> list[dict[str, dict]]:
    """Returns one entry per size and dtype, the largest first.

    An entry holds the full-pass rows of each contender, ours under "ours".
    """
    cells: dict[tuple, dict[str, dict]] = {}
    for row in result["rows"]:
        if row["loss"] == loss and row["pass"] == "full":
            place = (-row["N"], row["K"], row["D"], row["dtype"] != "fp32", row["dtype"])
            cells.setdefault(place, {})[row["backend"]] = row
    entries = []
    for key in sorted(cells):
        ours = next(
            (cells[key][name] for name in PREFERRED[result["kind"]] if name in cells[key]), None
        )
        if ours is not None:
            entries.append({**cells[key], "ours": ours})
    return entries


def section(kind: str, folder: Path = RESULTS) -> str:
    """Returns the Markdown between the markers of `kind`."""
    latest = newest(kind, folder)
    if latest is None:
        return UNMEASURED[kind]
    name, result = latest
    entries = chosen(result)
    header = [
        "N",
        "D",
        "dtype",
        "eager ms",
        "torch.compile ms",
        f"{entries[0]['ours']['backend']} ms",
    ]
    header += ["x eager", "x torch.compile", "of GEMM rate", "eager MB", "ours MB"]
    lines = []
    for entry in entries:
        ours = entry["ours"]
        line = [str(ours["N"]), str(ours["D"]), ours["dtype"]]
        line += [*baselines(entry), milliseconds(ours["ms"])]
        line += [cell(key, ours[key]) for key in ("x_eager", "x_compile", "gemm_fraction")]
        line += memory(entry)
        lines.append(line)
    source = (
        f"NT-Xent, forward + backward; N counts the rows of both views. {measured(name, result)}"
    )
    return f"{table(header, lines)}\n\n{source}"


def measured(name: str, result: dict) -> str:
    """Returns where, when and how a result was measured, with a link to its file."""
    return (
        f"{summary(result['environment'])} Measured {result['date']} "
        f"by `{result['command'].strip()}` ([data](bench/results/{name}))."
    )


def baselines(entry: dict[str, dict]) -> list[str]:
    """Returns the cells of the times of eager and torch.compile."""
    return [milliseconds(entry[b]["ms"]) if b in entry else "-" for b, _ in BASELINES]


def memory(entry: dict[str, dict]) -> list[str]:
    """Returns the cells of the peak memory of eager and of ours."""
    return [
        cell("peak_extra_bytes", entry[b]["peak_extra_bytes"]) if b in entry else "-"
        for b in ("eager", "ours")
    ]


def force(folder: Path = RESULTS) -> str:
    """Returns the Markdown table of the force loss on the CPU."""
    latest = newest("cpu", folder, "contrastive_force")
    if latest is None:
        return UNMEASURED["cpu"]
    name, result = latest
    lines = []
    for entry in chosen(result, "contrastive_force"):
        ours = entry["ours"]
        line = [str(ours["K"]), f"{ours['N']} + {ours['N']}", str(ours["D"])]
        line += [*baselines(entry), milliseconds(ours["ms"])]
        line += [cell(key, ours[key]) for key in ("x_eager", "x_compile")]
        line += memory(entry)
        lines.append(line)
    header = ["groups", "points", "D", "eager ms", "torch.compile ms", f"{ours['backend']} ms"]
    header += ["x eager", "x torch.compile"]
    return f"{table([*header, 'eager MB', 'ours MB'], lines)}\n\nfp32. {measured(name, result)}"


def losses(folder: Path = RESULTS) -> str:
    """Returns the Markdown table of the other losses on the CPU.

    Each is there at the largest size of its newest result.
    """
    header = [
        "loss",
        "N",
        "D",
        "dtype",
        "eager ms",
        "torch.compile ms",
        "ours ms",
        "x eager",
        "x torch.compile",
    ]
    lines, sources = [], {}
    for loss in LOSSES:
        latest = None if loss in ("nt_xent", "contrastive_force") else newest("cpu", folder, loss)
        if latest is None:
            continue
        name, result = latest
        entries = chosen(result, loss)
        sources[name] = (
            f"{summary(result['environment'])} Measured {result['date']} "
            f"([data](bench/results/{name}))"
        )
        for entry in entries:
            ours = entry["ours"]
            if ours["N"] != entries[0]["ours"]["N"]:
                continue
            size = f"{ours['N']} x {ours['K']}" if ours["K"] else str(ours["N"])
            line = [loss, size, str(ours["D"]), ours["dtype"]]
            line += baselines(entry)
            line += [
                milliseconds(ours["ms"]),
                *(cell(key, ours[key]) for key in ("x_eager", "x_compile")),
            ]
            line += memory(entry)
            lines.append(line)
    if not lines:
        return UNMEASURED["cpu"]
    source = f"Forward + backward, by `python -m bench`. {'; '.join(sources.values())}."
    return f"{table([*header, 'eager MB', 'ours MB'], lines)}\n\n{source}"


def accuracy(folder: Path = RESULTS) -> str:
    """Returns the Markdown table of the newest result of ``python -m bench.accuracy``."""
    found = sorted(folder.glob("accuracy-*.json"))
    if not found:
        return "not yet measured"
    result = json.loads(found[-1].read_text())
    lines = [
        [r["dtype"], str(r["temperature"]), f"{r['eager']:.1e}", f"{r['fused']:.1e}"]
        for r in result["rows"]
    ]
    source = (
        f"NT-Xent, views 0.3 σ apart, 1024 rows, D = 64; `{result['command']}` "
        f"([data](bench/results/{found[-1].name}))."
    )
    return f"{table(['dtype', 'temperature', 'eager', 'fused'], lines)}\n\n{source}"


def peers(folder: Path = RESULTS) -> str:
    """Returns the Markdown table of the newest result of ``python -m bench.peers``."""
    found = sorted(folder.glob("peers-*.json"))
    if not found:
        return "not yet measured"
    result = json.loads(found[-1].read_text())
    header = [
        "package",
        "loss",
        "options",
        "value",
        "gradient",
        "fp32 gradient, package",
        "ours",
        "N",
        "package MB",
        "ours MB",
    ]
    lines = []
    for row in result["rows"]:
        line = [row["package"], row["loss"], row["options"] or "defaults"]
        line += [f"{row[key]:.0e}" for key in ("value", "gradient")]
        line += [f"{row[f'fp32_gradient_{name}']:.0e}" for name in ("package", "ours")]
        lines.append(
            [
                *line,
                str(row["N"]),
                *(cell("peak_extra_bytes", row[f"{name}_bytes"]) for name in ("package", "ours")),
            ]
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    source = (
        "The differences from the installed package are relative. Value and gradient are compared "
        "in float64; the float32 gradients of both are compared with the package's in float64. "
        "Memory is counted over inputs and gradients, forward + backward, in fp32, "
        f"for N samples (of two views: pairs) and D = {result['rows'][0]['D']}. "
        'Where it says "-", nothing was measured: the largest matrix would take 34 GB. '
        f"{versions}. `{result['command']}` ([data](bench/results/{found[-1].name}))."
    )
    return f"{table(header, lines)}\n\n{source}"


def kernels(folder: Path = RESULTS) -> str:
    """Returns the measured rates of the GPU kernels beside the predicted ones.

    It also says which kernels no GPU has verified.
    """
    latest = newest("gpu", folder)
    parts = [] if latest is None else [measured_kernels(latest[1])]
    parts.append(
        f"`bench/model.py` predicts the rate of each kernel: {model.GIVEN}. "
        "A prediction is not a measurement."
    )
    states = gpu_status.status(kernel_hashes(), outcomes(folder))
    failed = [f"`{name}`" for name, state in states.items() if state.startswith("failed")]
    left = [
        f"`{name}`"
        for name, state in states.items()
        if not state.startswith(("verified", "failed"))
    ]
    if left and len(left) == len(states):
        parts.append(
            f"No GPU has run any of the {len(left)} kernels as they are now; "
            "`make gpu-status` lists them."
        )
    elif left:
        parts.append(f"No GPU has run these kernels as they are now: {', '.join(left)}.")
    if failed:
        parts.append(f"These kernels failed on a GPU: {', '.join(failed)}.")
    return "\n\n".join(parts)


def measured_kernels(result: dict) -> str:
    """Returns the Markdown table of the kernels in this GPU result.

    It has those that were measured at a predicted size.
    """
    entries = kernel_table.entries(result)
    lines = []
    for p in model.PREDICTIONS:
        unit = "GB/s" if p.kernel == "prepare" else "TFLOP/s"
        predicted = f"{p.least} - {p.most}" if p.least else f"up to {p.most}"
        place = {"kernel": p.kernel, "loss": p.loss, "D": p.D, "dtype": p.dtype}
        rates = [rate_of(entries, place | {"backend": name}) for name in ("triton", "cuda")]
        if rates != ["-", "-"]:
            lines.append([p.kernel, str(p.D), f"{predicted} {unit}", *rates])
    if not lines:
        return "No kernel has been measured at a predicted size yet."
    header = ["kernel", "D", "predicted", "triton, measured", "cuda, measured"]
    source = (
        "The number in brackets is the share of the bare rate that the same run measured. "
        f"{summary(result['environment'])}"
    )
    return f"{table(header, lines)}\n\n{source}"


def rate_of(entries: list[dict], place: dict) -> str:
    """Returns the rate at the largest N of the entries that match `place`.

    Its share of the bare rate follows. The result is "-" where no entry matches.
    """
    here = [e for e in entries if e["rate"] and place.items() <= e.items()]
    largest = max(here, key=lambda e: e["N"], default=None)
    return f"{largest['rate']:.0f} ({largest['of'] or 0:.2f})" if largest else "-"


def replace(text: str, kind: str, content: str) -> str:
    """Returns `text` with `content` between the markers of `kind`.

    Raises ValueError where there is not exactly one pair of markers.
    """
    begin, end = f"<!-- bench:{kind} -->", f"<!-- /bench:{kind} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the text needs one {begin} followed by one {end}")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


FEW = (
    ("nt_xent", 8192, 128, "fp32"),
    ("nt_xent", 8192, 512, "fp32"),
    ("clip", 4096, 512, "fp32"),
    ("siglip", 8192, 256, "fp32"),
    ("contrastive_force", 4096, 128, "fp32"),
)
"""The rows of the README: loss, N, D and dtype."""


def few(folder: Path = RESULTS) -> str:
    """Returns the README's Markdown table of a few results on the CPU."""
    lines, sources = [], {}
    for loss, *place in FEW:
        _, result = newest("cpu", folder, loss) or (None, {"rows": [], "kind": "cpu"})
        for entry in chosen(result, loss):
            ours = entry["ours"]
            if [ours["N"], ours["D"], ours["dtype"]] != place:
                continue
            sources[summary(result["environment"])] = result["date"]
            line = [f"`{loss}_loss`", f"{ours['N']:,} × {ours['D']}", ours["dtype"]]
            line += baselines(entry)
            line += [milliseconds(ours["ms"]), f"{ours['x_eager']:.1f} ×"]
            line += memory(entry)
            lines.append(line)
    if not lines:
        return UNMEASURED["cpu"]
    header = ["loss", "rows × D", "dtype", "eager ms", "torch.compile ms", "ours ms"]
    machine = next(iter(sources)).partition(";")[0]
    note = f"Forward + backward on {machine}, measured {max(sources.values())}."
    return f"{table([*header, 'faster', 'eager MB', 'ours MB'], lines)}\n\n{note}"


TABLES = {
    "results": few,
    "cpu": functools.partial(section, "cpu"),
    "gpu": functools.partial(section, "gpu"),
    "kernels": kernels,
    "force": force,
    "peers": peers,
    "classes": drop_ins.classes,
    "losses": losses,
    "accuracy": accuracy,
}
"""The tables by the names of their markers. Each takes the folder of the results."""


def generated(page: Path, folder: Path = RESULTS) -> str:
    """Returns the text of a page with all its tables."""
    text = page.read_text()
    for kind in re.findall("<!-- bench:(\\w+) -->", text):
        content = TABLES[kind](folder)
        if page.parent != ROOT:
            content = content.replace("](bench/", "](../bench/")
        text = replace(text, kind, content)
    return text


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    p.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where the tables differ from the results",
    )
    options = p.parse_args()
    status = 0
    for page in PAGES:
        new = generated(page)
        if new != page.read_text():
            if options.check:
                print(f"{page.relative_to(ROOT)} is out of date: run `make readme`")
                status = 1
            else:
                page.write_text(new)
    return status


if __name__ == "__main__":
    sys.exit(main())
