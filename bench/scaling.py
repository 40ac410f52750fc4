"""``python -m bench scaling`` measures the losses over ranks against one process without a group.

A rank has one thread, as the one process has. Time, bytes sent and peak memory are measured of a
step, which is a forward and a backward pass. ``<out>.json``, ``.md`` and ``.png`` are written. With
``--model`` it predicts the same of up to 1,024 GPUs instead (scaling_model.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

import torch

from . import environment, plots, report, scaling_model
from .losses import Size, parse_size
from .measure import interleave, paired_ratio, quartiles
from .ranks import SMALL, Pool, size_of_rank
from .source_tree import complete_package

LOSSES = ("nt_xent", "clip", "siglip", "info_nce")
STRATEGIES = ("ring", "gather")
ONE = (0, None)
"""The process without a group, among contenders ``(ranks, strategy)``."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    p = argparse.ArgumentParser(
        prog="python -m bench scaling", description=__doc__.split("\n\n")[0]
    )
    p.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="(default: 1 2 4)")
    p.add_argument("--losses", nargs="+", choices=LOSSES, default=["nt_xent", "clip"])
    p.add_argument(
        "--sizes",
        nargs="+",
        default=["8192x256"],
        help="NxD, of all ranks together; N counts rows of both views for nt_xent, else pairs",
    )
    p.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    p.add_argument("--rounds", type=int, default=11, help="timed rounds (default: %(default)s)")
    p.add_argument("--no-times", action="store_true", help="one step of each: memory and bytes")
    p.add_argument("--model", action="store_true", help="predict GPUs, and measure nothing")
    p.add_argument("--out", type=Path, help="path of the results without suffix")
    return p


def measure(
    loss: str, size: Size, pools: dict[int, Pool], strategies: list[str], rounds: int
) -> list[dict]:
    """Returns a row for each number of ranks and strategy.

    Where times are measured there is a row for the process without a group, too.

    Args:
        pools: by the number of ranks. For times the pool of 1 is needed.
        rounds: of timed steps; 0 for none.
    """
    contenders = [(world, strategy) for world in pools for strategy in strategies]
    contenders = [ONE, *contenders] if rounds else contenders
    rows = {}
    for world, strategy in contenders:
        pool = pools[world or 1]
        share = size if world == 0 else size_of_rank(loss, size, world)
        small = size._replace(N=min(SMALL, share.N) * max(world, 1))
        for of in (small, size):
            pool.ask("prepare", loss, of, strategy)
            observed = pool.ask("observe")
        expected = scaling_model.sent_bytes(loss, size.N, size.D, world or 1, strategy)
        rows[world, strategy] = {
            "loss": loss,
            "N": size.N,
            "D": size.D,
            "dtype": "fp32",
            "ranks": world,
            "strategy": strategy,
            "sent_bytes": most(observed, "sent"),
            "expected_bytes": expected,
            "peak_extra_bytes": most(observed, "peak"),
        }
    if rounds:
        load = os.getloadavg()[0]
        for key, timed in times(loss, size, pools, contenders, rounds).items():
            rows.setdefault(key, {}).update(timed, load_average=load)
    ceilings = {world: row for (world, strategy), row in rows.items() if strategy == "apart"}
    for (world, strategy), row in rows.items():
        if strategy in STRATEGIES and world in ceilings:
            row["ceiling"] = world * ceilings[world]["speedup"]
    return [row for (_, strategy), row in rows.items() if strategy != "apart"]


def most(answers: list[dict], key: str):
    """Returns the largest answer of the ranks, or None where there is none."""
    values = [answer[key] for answer in answers]
    return None if None in values else max(values)


def times(loss: str, size: Size, pools: dict[int, Pool], contenders, rounds: int) -> dict:
    """Returns the times of every contender in interleaved rounds.

    Beside the contenders, ``(world, "apart")`` are so many processes that all compute the whole
    loss at the same time. Their slowdown shows what the machine's cores can gain at most.
    """
    cores = os.cpu_count() or 1
    contenders = [*contenders, *((w, "apart") for w in pools if 1 < w <= cores)]
    core = {key: [] for key in contenders}

    def contender(key):
        world, strategy = key
        pool = pools[world or 1]
        apart = strategy == "apart"

        def sample(repeats: int):
            pool.ask("prepare", loss, size, None if apart else strategy, apart)
            # The caches are those of another contender.
            pool.ask("step")
            answers = pool.ask("step")
            core[key].append(most(answers, "core"))
            return most(answers, "forward"), most(answers, "backward")

        return sample

    steps = {key: contender(key) for key in contenders}
    samples = interleave(steps, 0.0, dict.fromkeys(steps, 1.0), least=rounds, most=rounds)
    totals = {key: [sum(sample) for sample in taken] for key, taken in samples.items()}
    found = {}
    for key, seconds in totals.items():
        low, middle, high = quartiles(seconds)
        speedup = paired_ratio(totals[ONE], seconds)
        found[key] = {
            "ms": 1e3 * middle,
            "ms_quartiles": [1e3 * low, 1e3 * high],
            "core_ms": 1e3 * quartiles(core[key])[1],
            "speedup": speedup[1],
            "speedup_quartiles": [speedup[0], speedup[2]],
            "core_speedup": paired_ratio(core[ONE], core[key])[1],
            "rounds": rounds,
            "cores": cores,
        }
    return found


def markdown(result: dict) -> str:
    """Returns the table of a result, below what it was measured with."""
    header = ["loss", "N", "D", "ranks", "strategy", "ms", "quartiles", "x one", "quartiles"]
    header += ["x one in core time", "ceiling", "sent MB", "peak MB"]

    def pair(values, digits):
        return "-" if values is None else " - ".join(f"{x:.{digits}f}" for x in values)

    def number(value, scale=1.0, digits=2):
        return "-" if value is None else f"{value * scale:.{digits}f}"

    lines = []
    for row in result["rows"]:
        timed = row.get("cores") and row["ranks"] <= row["cores"]
        get = row.get if timed else lambda name: None
        lines.append(
            [
                row["loss"],
                str(row["N"]),
                str(row["D"]),
                str(row["ranks"]) if row["ranks"] else "no group",
                row["strategy"] or "-",
                number(row.get("ms"), digits=0),
                pair(row.get("ms_quartiles"), 0),
                number(get("speedup")),
                pair(get("speedup_quartiles"), 2),
                number(get("core_speedup")),
                number(row.get("ceiling")),
                number(row["sent_bytes"], 1e-6, 1),
                number(row["peak_extra_bytes"], 1e-6, 1),
            ]
        )
    note = (
        "`x one` is the time of one process of one thread over that of the ranks, within rounds; "
        "it is left out where there are more ranks than cores. Core time is what a process had a "
        "core for, waiting left out. `ceiling` is what as many unconnected processes gain. "
        "Without times the peak is of what is in use, without gaps that the allocator keeps."
    )
    summary = report.summary(result["environment"])
    return f"{summary}\n\n{note}\n\n{report.table(header, lines)}\n"


def run(options: argparse.Namespace, stem: Path) -> dict:
    """Measures all losses and sizes, and writes the JSON after each."""
    torch.set_num_threads(1)
    described = environment.describe(torch.device("cpu"))
    result = report.new_result("scaling", environment.command_line("bench"), described)
    sizes = [parse_size(text) for text in options.sizes]
    rounds = 0 if options.no_times else options.rounds
    worlds = sorted({1, *options.ranks} if rounds else {*options.ranks})
    for loss in options.losses:
        for size in sizes:
            for world in worlds:
                size_of_rank(loss, size, world)
    if not rounds:
        # The C library then returns every freed block to the system, so that the resident set is
        # what is in use. That takes time, so it is not done where times are measured.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
    with contextlib.ExitStack() as stack:
        pools = {world: stack.enter_context(Pool(world)) for world in worlds}
        for loss in options.losses:
            for size in sizes:
                began = time.perf_counter()
                result["rows"] += measure(loss, size, pools, options.strategies, rounds)
                report.write_json(result, stem.with_name(stem.name + ".json"))
                print(f"{loss} {size}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    result["complete"] = True
    report.write_json(result, stem.with_name(stem.name + ".json"))
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    complete_package()
    kind = "scaling-model" if options.model else "scaling"
    name = "" if options.model else environment.slug(environment.cpu_model()) + "-"
    default = environment.ROOT / "bench" / "out" / f"{kind}-{name}{time.strftime('%Y-%m-%d')}"
    stem = options.out or default
    if options.model:
        return scaling_model.write(stem)
    try:
        result = run(options, stem)
    except ValueError as error:
        print(f"python -m bench scaling: {error}", file=sys.stderr)
        return 2
    page = markdown(result)
    stem.with_name(stem.name + ".md").write_text(page)
    print(page)
    print(plots.draw(result, stem.with_name(stem.name + ".png")) or f"plot: {stem.name}.png")
    return 0
