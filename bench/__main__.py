"""``python -m bench`` measures the speed and memory of the losses.

Each loss is measured in turns with the eager code and with torch.compile of it. ``<out>.json`` is
written after every group of rows. At the end ``<out>.md`` and ``<out>.png`` are written and the
table is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from . import compare, contenders, digest, environment, plots, report, rows, scaling
from .losses import DTYPES, LOSSES, PASSES, parse_size
from .plots import committed
from .source_tree import complete_package

QUICK_SIZES = ("8192x128", "8192x256", "8192x512", "4096x1024", "2048x128", "256x128", "64x128")
QUICK_LOSSES = ["nt_xent", "contrastive_force"]
LARGE_D = 256
"""From this D on, the default dtypes include bf16."""
COMPILED_FROM = 2048
"""With --quick, torch.compile runs in fp32 from this N on, because it takes 10 s for each size.

Its memory is not measured then.
"""
MEMORY_FROM = 2048
"""Resident memory is measured from this N (or K) on. Below, it would be noise."""
QUICK_SECONDS, FULL_SECONDS = 55.0, 600.0
SUBCOMMANDS = {
    "compare": compare.main,
    "digest": digest.main,
    "plot": committed.main,
    "scaling": scaling.main,
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__.split("\n\n")[0],
        epilog=f"Other commands: python -m bench {' | '.join(SUBCOMMANDS)}, each with --help.",
    )
    p.add_argument(
        "--losses",
        help=f"comma-separated, of {', '.join(LOSSES)}, or all "
        "(default: all; quick: nt_xent, contrastive_force)",
    )
    p.add_argument(
        "--sizes",
        help="comma-separated NxD, or NxKxD for queued keys and prediction steps "
        "(default: each loss's list)",
    )
    p.add_argument(
        "--dtypes",
        help=f"comma-separated, of {', '.join(DTYPES)} "
        f"(default: fp32, and bf16 from D = {LARGE_D})",
    )
    p.add_argument(
        "--backends",
        help="comma-separated, of eager, compile and the package's (default: all available)",
    )
    p.add_argument("--passes", help=f"comma-separated, of {', '.join(PASSES)} (default: all)")
    p.add_argument(
        "--seconds",
        type=float,
        help="budget of the timed rounds alone; each group has at least 5 rounds",
    )
    p.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    p.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    p.add_argument(
        "--out",
        type=Path,
        help="path of the results without suffix (default: bench/out/<device>-<date>)",
    )
    p.add_argument(
        "--brief", action="store_true", help="print no table, draw no plot: only the JSON"
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="the 3-minute version: fewer losses, sizes, contenders and rounds",
    )
    return p


def groups(options: argparse.Namespace) -> list[rows.Group]:
    """Returns the groups that the options ask for.

    Raises ValueError naming an unknown choice.
    """
    device = torch.device(options.device)
    losses = _choices(
        "--losses", options.losses, LOSSES, QUICK_LOSSES if options.quick else list(LOSSES)
    )
    every = (*contenders.BASELINES, *contenders.KNOWN)
    brief = options.quick and options.backends is None
    usual = (
        [*contenders.BASELINES, contenders.default(device)] if brief else contenders.names(device)
    )
    backends = _choices("--backends", options.backends, every, usual)
    planned = []
    for loss in losses:
        defaults = QUICK_SIZES if options.quick and loss == "nt_xent" else LOSSES[loss].sizes
        for text in options.sizes.split(",") if options.sizes else defaults:
            size = parse_size(text)
            if bool(size.K) != LOSSES[loss].takes_k:
                raise ValueError(
                    f"{loss} needs sizes {'NxKxD' if LOSSES[loss].takes_k else 'NxD'}, got {text}"
                )
            if loss == "nt_xent" and size.N % 2:
                raise ValueError(
                    f"nt_xent counts the rows of both views: N must be even, got {text}"
                )
            dtypes = _choices(
                "--dtypes",
                options.dtypes,
                DTYPES,
                ["fp32", "bf16"] if size.D >= LARGE_D and loss != "contrastive_force" else ["fp32"],
            )
            pairs = [(name, dtype) for dtype in dtypes for name in backends]
            if brief:
                pairs = [
                    pair
                    for pair in pairs
                    if pair[0] != "compile"
                    or (pair[1] == "fp32" and size.N * max(1, size.K) >= COMPILED_FROM)
                ]
            planned.append(rows.Group(loss, size, tuple(pairs)))
    return planned


def _choices(option: str, given: str | None, known, default: list[str]) -> list[str]:
    if given is None:
        return default
    names = list(known) if given == "all" else given.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: {name!r} is none of {', '.join(known)}")
    return names


def default_stem(device: torch.device) -> str:
    """Returns ``cpu-<model>-<date>`` or ``gpu-<model>-<date>``, as committed results are named."""
    kind, model = (
        ("gpu", torch.cuda.get_device_name())
        if device.type == "cuda"
        else ("cpu", environment.cpu_model())
    )
    return f"{kind}-{environment.slug(model)}-{time.strftime('%Y-%m-%d')}"


def run(options: argparse.Namespace, planned: list[rows.Group], stem: Path) -> dict:
    """Measures every group, writes the JSON after each, and returns the result."""
    device = torch.device(options.device)
    passes = tuple(_choices("--passes", options.passes, PASSES, list(PASSES)))
    plan = rows.Plan(device, passes, memory=not options.no_memory, most=15 if options.quick else 40)
    kind = "gpu" if device.type == "cuda" else "cpu"
    result = report.new_result(
        kind, environment.command_line("bench"), environment.describe(device)
    )
    left = options.seconds or (QUICK_SECONDS if options.quick else FULL_SECONDS)
    on_host = not options.no_memory and device.type == "cpu"
    progress = report.Progress(len(planned) + on_host)
    for done, group in enumerate(planned):
        progress.begin(str(group))
        began = time.perf_counter()
        measured = rows.run_group(group, plan, left / (len(planned) - done), progress.tick)
        left = max(0.0, left - measured["sampling_seconds"])
        for key in ("rows", "unavailable"):
            result[key] += measured[key]
        result["compile_seconds"][str(group)] = measured["compile_seconds"]
        report.write_json(result, stem.with_name(stem.name + ".json"))
        progress.end(headline(measured["rows"]) + f" ({time.perf_counter() - began:.0f} s)")
    if on_host:
        progress.begin("peak memory")
        large = [row for row in result["rows"] if row["N"] * max(1, row["K"]) >= MEMORY_FROM]
        if options.quick:
            large = [row for row in large if row["backend"] != "compile" and row["dtype"] == "fp32"]
        rows.add_host_memory(large, 60.0 if options.quick else 600.0, progress.tick)
        progress.end()
    progress.close()
    result["complete"] = True
    report.write_json(result, stem.with_name(stem.name + ".json"))
    return result


def headline(measured: list[dict]) -> str:
    """Returns each contender's ratio to eager of the full pass."""
    full = [r for r in measured if r["pass"] == "full" and r["backend"] != "eager" and r["x_eager"]]
    return ", ".join(
        f"{r['backend']} {r['dtype']} {report.cell('x_eager', r['x_eager'])}x" for r in full
    )


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in SUBCOMMANDS:
        return SUBCOMMANDS[arguments[0]](arguments[1:])
    options = parser().parse_args(arguments)
    complete_package()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    try:
        planned = groups(options)
    except ValueError as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        return 2
    stem = options.out or environment.ROOT / "bench" / "out" / default_stem(
        torch.device(options.device)
    )
    described = (
        f"{torch.get_num_threads()} CPU threads"
        if options.device == "cpu"
        else torch.cuda.get_device_name()
    )
    print(
        f"{len(planned)} groups on {described}; "
        "ratios within interleaved rounds are the result, not times",
        flush=True,
    )
    try:
        result = run(options, planned, stem)
    except rows.DeviceLost as error:
        print(f"the device answers no more: {error}", file=sys.stderr)
        return 3
    if options.brief:
        return 0
    page = report.markdown(result)
    stem.with_name(stem.name + ".md").write_text(page)
    print(page)
    print(plots.draw(result, stem.with_name(stem.name + ".png")) or f"plot: {stem.name}.png")
    print(f"results: {stem}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
