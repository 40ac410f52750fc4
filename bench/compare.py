"""``python -m bench compare BASE HEAD`` says whether two revisions are equally fast.

It also says whether they compute the same bits.

Both revisions (any name git knows, or ``.`` for the working tree) are built into folders of their
own and measured in one run. There is one process for each. They take turns sample by sample (A B, B
A, A B, ...), so that whatever disturbs the machine meets both alike. The result is the ratio HEAD /
BASE, not the times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import environment, report
from .digest import differing
from .losses import DTYPES, LOSSES, PASSES, parse_size
from .measure import MIN_SAMPLE, quartiles, seconds_of
from .revisions import build, command, process_options
from .source_tree import ROOT

DEFAULT_LOSSES = "nt_xent,info_nce,clip"
DEFAULT_SIZES = "64x128,256x128,8192x128"
SHOWN = 40
"""At most so many differing cases are printed. The file of ``--out`` holds them all."""


class Process:
    """This worker process measures one revision."""

    def __init__(self, package: Path, threads: int):
        self.process = subprocess.Popen(
            command("worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **process_options(package),
        )
        file = Path(self.ask("package", threads=threads)["file"])
        if not file.is_relative_to(package):
            self.close()
            raise RuntimeError(f"the worker of {package} imported {file}")

    def ask(self, what: str, **arguments) -> dict:
        """Returns the answer to one request. Raises RuntimeError where the worker has died."""
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with {self.process.wait()} on {what} {arguments}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


def rounds(base: Process, head: Process, repeats: int, number: int) -> tuple[list, list]:
    """Takes ``number`` rounds of one sample of each, where the one that goes first alternates."""
    samples = {base: [], head: []}
    for done in range(number):
        for process in (base, head) if done % 2 == 0 else (head, base):
            taken = process.ask("sample", repeats=repeats)
            samples[process].append((taken["forward"], taken["backward"]))
    return samples[base], samples[head]


def row(place: dict, which: str, base: list, head: list) -> dict:
    """Returns one line of the result.

    It has medians in milliseconds, their ratio, and the quartiles of the rounds' ratios.
    """
    before, after = seconds_of(base, which), seconds_of(head, which)
    low, middle, high = quartiles([b / a for a, b in zip(before, after, strict=True)])
    medians = statistics.median(before), statistics.median(after)
    return {
        **place,
        "pass": which,
        "base_ms": medians[0] * 1e3,
        "head_ms": medians[1] * 1e3,
        "ratio": medians[1] / medians[0],
        "round_ratio_quartiles": [low, middle, high],
        "rounds": len(before),
    }


def time_both(packages: list[Path], options: argparse.Namespace) -> list[dict]:
    """Measures every loss, size, dtype and pass, and returns the rows.

    Each row is printed as it is done.
    """
    processes: list[Process] = []
    found = []
    try:
        for package in packages:
            processes.append(Process(package, options.threads))
        base, head = processes
        for loss in options.losses:
            for size in options.sizes:
                for dtype in options.dtypes:
                    place = {"loss": loss, "size": size, "dtype": dtype}
                    steps = [process.ask("prepare", **place)["seconds"] for process in processes]
                    repeats = max(1, round(MIN_SAMPLE / min(steps)))
                    taken = rounds(base, head, repeats, options.rounds)
                    found += [row(place, which, *taken) for which in options.passes]
                    rows = found[-len(options.passes) :]
                    print(text(rows, heading=len(rows) == len(found)), flush=True)
    finally:
        for process in processes:
            process.close()
    return found


def text(rows: list[dict], heading: bool) -> str:
    """Returns the rows as aligned lines."""
    lines = []
    if heading:
        lines.append(
            f"{'loss':20} {'size':>14} {'dtype':>5} {'pass':>8} {'base ms':>9} {'head ms':>9} "
            f"{'head/base':>9}  quartiles of the rounds"
        )
    for r in rows:
        low, _, high = r["round_ratio_quartiles"]
        lines.append(
            f"{r['loss']:20} {r['size']:>14} {r['dtype']:>5} {r['pass']:>8} {r['base_ms']:9.4f} "
            f"{r['head_ms']:9.4f} {r['ratio']:9.3f}  {low:.3f} - {high:.3f} ({r['rounds']} rounds)"
        )
    return "\n".join(lines)


def digests(packages: list[Path], match: str) -> list[dict[str, str]]:
    """Returns the table of `bench.digest` of each package. Both are made at the same time."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{k}.json" for k in range(len(packages))]
        running = [
            subprocess.Popen(
                command("digest", "--match", match, "--out", str(file)), **process_options(package)
            )
            for package, file in zip(packages, files, strict=True)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError("a digest ended with an error")
        return [json.loads(file.read_text()) for file in files]


def compare_digests(packages: list[Path], match: str) -> dict:
    """Returns how many cases there are and which of them differ, and prints both."""
    base, head = digests(packages, match)
    lines = differing(base, head)
    cases = len(base.keys() | head.keys())
    print(f"results: {cases - len(lines)} of {cases} cases are equal bit for bit")
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")
    return {"cases": cases, "equal": cases - len(lines), "differing": lines}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line. Exits with a message that names an unknown choice."""
    p = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__)
    p.add_argument("base", help="a revision, or . for the working tree")
    p.add_argument("head", help="a revision, or . for the working tree")
    p.add_argument("--losses", default=DEFAULT_LOSSES, help="default: %(default)s")
    p.add_argument("--sizes", default=DEFAULT_SIZES, help="NxD or NxKxD; default: %(default)s")
    p.add_argument("--dtypes", default="fp32", help="default: %(default)s")
    p.add_argument("--passes", default=",".join(PASSES), help="default: %(default)s")
    p.add_argument("--rounds", type=int, default=40, help="samples of each (%(default)s)")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    p.add_argument("--digest-only", action="store_true", help="compare the results, not the speed")
    p.add_argument("--speed-only", action="store_true", help="compare the speed, not the results")
    p.add_argument("--match", default="", help="only the result cases whose names contain this")
    p.add_argument("--out", type=Path, help="write what was found here as JSON")
    options = p.parse_args(arguments)
    known = {"losses": LOSSES, "dtypes": DTYPES, "passes": PASSES}
    for name in ("losses", "sizes", "dtypes", "passes"):
        chosen = getattr(options, name).split(",")
        setattr(options, name, chosen)
        for value in chosen:
            if name != "sizes" and value not in known[name]:
                p.error(f"--{name}: {value!r} is none of {', '.join(known[name])}")
    try:
        [parse_size(size) for size in options.sizes]
    except ValueError as error:
        p.error(str(error))
    if options.rounds < 1:
        p.error(f"--rounds must be positive, got {options.rounds}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Compares the revisions. Returns 1 where results differ."""
    options = parse(arguments)
    built = [build(revision) for revision in (options.base, options.head)]
    packages = [folder for _, folder in built]
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": environment.command_line("bench"),
        "base": built[0][0],
        "head": built[1][0],
        "cpu": environment.cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    if not options.speed_only:
        result["digest"] = compare_digests(packages, options.match)
    if not options.digest_only:
        result["rows"] = time_both(packages, options)
    if options.out:
        report.write_json(result, ROOT / options.out)
    return int(bool(result.get("digest", {}).get("differing")))


if __name__ == "__main__":
    sys.exit(main())
