"""``make gpu``: device tests and the NT-Xent benchmark on this machine's GPU, with the Python and torch it has, in under 8 minutes.

Needs no network and installs nothing: the package is imported from the checkout (source_tree.py). Tests and benchmark run in processes
of their own, so that a kernel that breaks the device ends one stage only. One JSON, rewritten as results come in, holds hardware,
versions, bare rates, test outcomes, rows, and the source hash of every kernel that passed. Exit 2 without a GPU, 1 on failures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from . import device_tests, environment, report, test_log
from .environment import ROOT, slug
from .losses import DTYPES, parse_size
from .measure import Copy, Product, interleave, quartiles, seconds_of
from .source_tree import complete_package

RESULTS = ROOT / "bench" / "results"
BUDGET = 450.0
"""Seconds in all by default."""


class Stage(NamedTuple):
    """NT-Xent sizes measured in one process; `limit` seconds at most, `sampling` of them in timed rounds."""

    dtypes: str
    sizes: tuple[str, ...]
    limit: float
    sampling: float
    backends: str = "eager,compile,triton"


FIRST = (Stage("bf16", ("16384x128", "16384x256", "16384x512", "16384x1024", "4096x128"), 140, 12),)
TESTS_LIMIT = 170.0
THEN = (
    Stage("tf32,fp32", ("8192x256", "16384x128"), 80, 8),
    Stage("bf16", ("65536x128", "65536x512", "4096x512", "2048x128", "8192x256"), 90, 12),
    Stage("bf16", ("262144x128",), 30, 3, "triton"),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON (default: bench/results)")
    p.add_argument("--seconds", type=float, default=BUDGET, help="budget in all (default: %(default)s)")
    p.add_argument("--only", choices=("tests", "rows"), help="leave the other part out")
    return p


class Run:
    """A result being filled: every change is written at once."""

    def __init__(self, result: dict, folder: Path, stem: str, seconds: float, device: str = "cuda"):
        self.result, self.path, self.device = result, unused(folder, stem), device
        self.end = time.monotonic() + seconds
        self.scratch = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
        self.write()

    def left(self) -> float:
        return self.end - time.monotonic()

    def write(self) -> None:
        report.write_json(self.result, self.path)


def describe() -> dict:
    """The environment, without this machine's paths."""
    described = environment.describe(torch.device("cuda"))
    tool = described["gpu"]["ptxas"]
    print(
        f"ptxas of Triton: {tool['version']} at {tool['path']} (TRITON_PTXAS_PATH={os.environ.get('TRITON_PTXAS_PATH', '')!r})"
    )
    major, minor = torch.cuda.get_device_capability()
    warning = environment.ptxas_warning(10 * major + minor, tool["version"])
    if warning:
        print(f"warning: {warning}")
    described["gpu"]["ptxas"] = {
        "version": tool["version"],
        "from": "TRITON_PTXAS_PATH" if "TRITON_PTXAS_PATH" in os.environ else "triton",
    }
    return described


def unused(folder: Path, stem: str) -> Path:
    """``stem.json`` in `folder`, or with -2, -3, ... where earlier runs of the day have it."""
    names = [stem, *(f"{stem}-{k}" for k in range(2, 100))]
    return next(folder / f"{name}.json" for name in names if not (folder / f"{name}.json").exists())


def rates() -> dict:
    """Bare rates of this GPU: device copy in GB/s (bytes read and written) and 8192-cubed products in TFLOP/s."""
    device = torch.device("cuda")
    work = {name: Product(8192, 8192, DTYPES[name], device, name == "tf32") for name in ("bf16", "tf32", "fp32")}
    work["copy"] = Copy(2 << 30, device)
    for contender in work.values():
        contender(2)
    samples = interleave(work, 3.0, {name: sum(contender()) for name, contender in work.items()}, most=15)
    median = {name: quartiles(seconds_of(taken, "forward"))[1] for name, taken in samples.items()}
    measured = {
        f"gemm_{name}_tflops": round(work[name].flops / median[name] / 1e12, 1) for name in ("bf16", "tf32", "fp32")
    }
    measured["copy_gb_per_s"] = round(work["copy"].moved / median["copy"] / 1e9)
    del work
    torch.cuda.empty_cache()
    return measured


def child(command: list[str], limit: float, extra: dict[str, str], poll) -> int | None:
    """Runs a Python command from the checkout; `poll` is called every second. Its exit status, None when it was out of time."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        **extra,
    }
    environ["PYTHONUNBUFFERED"] = "1"
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environ, start_new_session=True)
    end = time.monotonic() + limit
    try:
        while time.monotonic() < end:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                poll()
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        poll()


def run_rows(run: Run, stage: Stage) -> None:
    """One stage; when its process dies, the size it died at is recorded and the rest goes on in a new one."""
    sizes = [parse_size(size) for size in stage.sizes]
    end = time.monotonic() + min(stage.limit, run.left())
    while sizes and time.monotonic() < end:
        print(f"\n{stage.dtypes} {' '.join(map(str, sizes))}: {stage.backends}", flush=True)
        part = run.scratch / f"{stage.dtypes}-{sizes[0]}.json"
        sampling = max(1.0, min(stage.sampling, (end - time.monotonic()) / 3))
        command = [
            "-m", "bench", "--device", run.device, "--losses", "nt_xent", "--sizes", ",".join(map(str, sizes)),
            "--dtypes", stage.dtypes, "--backends", stage.backends, "--seconds", f"{sampling:.1f}",
            "--out", str(part.with_suffix("")), "--brief",
        ]  # fmt: skip
        earlier = {key: run.result[key].copy() for key in ("rows", "unavailable", "compile_seconds")}
        status = child(command, end - time.monotonic(), {}, partial(merge_part, run, part, earlier))
        done = json.loads(part.read_text())["compile_seconds"] if part.exists() else {}
        sizes = sizes[len(done) :]
        if status != 0 and sizes:
            reason = "out of time" if status is None else f"the process ended with {status}"
            N, K, D = sizes.pop(0)
            place = {"loss": "nt_xent", "backend": stage.backends, "dtype": stage.dtypes, "N": N, "K": K, "D": D}
            run.result["unavailable"].append({**place, "reason": reason})
            run.write()


def merge_part(run: Run, part: Path, earlier: dict) -> None:
    """What a stage has measured so far, added to what was there before it."""
    if part.exists():
        read = json.loads(part.read_text())
        for key, value in earlier.items():
            run.result[key] = {**value, **read[key]} if isinstance(value, dict) else value + read[key]
        run.write()


def run_tests(run: Run, limit: float, selection: tuple[str, ...] = ("tests",)) -> None:
    """The tests with device inputs; a process that dies is followed by another that goes on after the tests already recorded."""
    log = run.scratch / "tests.jsonl"
    end = time.monotonic() + min(limit, run.left())
    hashes = environment.kernel_hashes()
    options = f"--device {run.device} -p bench.device_tests -p no:cacheprovider -q --tb=short".split()
    if importlib.util.find_spec("xdist"):
        options += ["-n", str(min(6, os.cpu_count() or 1))]

    def merge():
        outcomes = test_log.read(log)
        run.result["tests"] = test_log.summary(outcomes)
        run.result["kernels"] = test_log.kernels(outcomes, hashes)
        run.write()

    print("\ntests with inputs on the device", flush=True)
    merge()
    status = None
    while (left := end - time.monotonic()) > 5:
        before = len(test_log.read(log))
        if before:
            shutil.copyfile(log, device_tests.earlier(log))
        status = child(["-m", "pytest", *selection, *options], left, {device_tests.LOG: str(log)}, merge)
        if status in (0, 1, 5) or len(test_log.read(log)) == before:
            break
    run.result["tests"].update(complete=status in (0, 1), exit_status=status)
    run.write()


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        cuda = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        built = f"torch {torch.__version__} {cuda}"
        print(f"no GPU to run on: torch.cuda.is_available() is False ({built})", file=sys.stderr)
        return 2
    complete_package()
    result = report.new_result("gpu", environment.command_line("bench.gpu"), describe())
    result.update(rates={}, tests=None, kernels={})
    print(report.summary(result["environment"]), flush=True)
    run = Run(result, options.out, f"gpu-{slug(torch.cuda.get_device_name())}-{result['date']}", options.seconds)
    if options.only != "tests":
        run.result["rates"] = rates()
        print(run.result["rates"], flush=True)
        for stage in FIRST:
            run_rows(run, stage)
    if options.only != "rows":
        run_tests(run, TESTS_LIMIT if options.only is None else run.left())
    if options.only != "tests":
        for stage in THEN:
            run_rows(run, stage)
    run.result["complete"] = run.left() > 0
    run.write()
    return conclude(run)


def conclude(run: Run) -> int:
    """Prints rows, kernels and tests; 1 where a test failed or a kernel did not pass."""
    print("\n" + report.markdown(run.result, ("full",)))
    for name, state in sorted(run.result["kernels"].items()):
        print(
            f"{name}: {'passed' if state['passed'] else 'FAILED' if state['tests'] else 'not run'} ({state['tests']} tests)"
        )
    tests = run.result["tests"]
    if tests:
        print(f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
        for failure in tests["failures"][:10]:
            print(
                f"  {failure['test']}: {failure['message'].strip().splitlines()[-1][:200] if failure['message'].strip() else ''}"
            )
    print(f"results: {run.path}")
    return 1 if tests and (tests["failed"] or not tests["passed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
