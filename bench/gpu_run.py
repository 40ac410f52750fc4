"""One run of ``make gpu``: its result file, found again and gone on with, and the stages that fill it in processes of their own."""

from __future__ import annotations

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

from . import device_tests, environment, report, test_log
from .environment import ROOT
from .losses import Size, parse_size

SECONDS_OF_A_SIZE = 50.0
"""A process that takes longer (compiling included) is taken to hang."""


class Stage(NamedTuple):
    """Sizes measured in one process per loss; `sampling` seconds of them in timed rounds."""

    losses: str
    dtypes: str
    sizes: tuple[str, ...]
    sampling: float
    backends: str = ""


def key(loss: str, size: Size, dtypes: str) -> str:
    """Name of a group in results: `rows.Group` prints the same."""
    return f"{loss} {size} {dtypes}"


def fingerprint(described: dict) -> str:
    """Of the package's GPU code, the versions that compile it and the GPU: what a result holds for."""
    gpu = described["gpu"] or {}
    versions = [described[name] for name in ("torch", "triton")] + [
        gpu.get(name) for name in ("name", "driver", "ptxas")
    ]
    return environment.digest(("fused_contrastive", "triton_kernels", "csrc/cuda"), repr(versions))


class Run:
    """A result being filled: every change is written at once."""

    def __init__(self, result: dict, path: Path, device: str = "cuda"):
        self.result, self.path, self.device = result, path, device
        self.end = time.monotonic()
        self.scratch = Path(tempfile.mkdtemp(prefix="bench-gpu-"))

    @classmethod
    def opened(cls, described: dict, folder: Path, stem: str, command: str, device: str = "cuda") -> Run:
        """The newest result in `folder` of these sources on this GPU, else a new one named `stem` and the date."""
        holds_for = fingerprint(described)
        for path in sorted(folder.glob(f"{stem}[0-9]*.json"), reverse=True):
            result = json.loads(path.read_text())
            if result.get("fingerprint") == holds_for:
                print(f"going on with {path.name}", flush=True)
                return cls(result, path, device)
        result = report.new_result("gpu", command, described)
        result.update(fingerprint=holds_for, rates={}, tests=None, tests_of="", kernels={}, sanitizer={}, swept=False)
        result["given_up"] = []
        run = cls(result, unused(folder, stem + result["date"]), device)
        run.write()
        return run

    def begin(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def write(self) -> None:
        report.write_json(self.result, self.path)

    def log(self) -> Path:
        """The tests' outcomes, one line each; begun anew where the tests changed."""
        path, now = self.path.with_suffix(".tests.jsonl"), environment.digest(("tests",))
        if self.result["tests_of"] != now:
            path.unlink(missing_ok=True)
            self.result.update(tests_of=now, tests=None)
        return path

    def tests_done(self) -> bool:
        self.log()
        return bool(self.result["tests"] and self.result["tests"]["complete"])

    def missing(self, stage: Stage) -> dict[str, list[Size]]:
        """Sizes of a stage still to be measured, by loss."""
        known = {*self.result["compile_seconds"], *self.result["given_up"]}
        wanted = {
            loss: [s for s in map(parse_size, stage.sizes) if key(loss, s, stage.dtypes) not in known]
            for loss in stage.losses.split(",")
        }
        return {loss: sizes for loss, sizes in wanted.items() if sizes}


def unused(folder: Path, stem: str) -> Path:
    """``stem.json`` in `folder`, or with -2, -3, ... where earlier runs of the day have it."""
    names = [stem, *(f"{stem}-{k}" for k in range(2, 100))]
    return next(folder / f"{name}.json" for name in names if not (folder / f"{name}.json").exists())


def child(command: list[str], limit: float, extra: dict[str, str], poll) -> int | None:
    """Runs a Python command from the checkout; `poll` is called every second. Its exit status, None when it was out of time."""
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }
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
    """What is missing of one stage. When its process dies or hangs, the size it died at is given up and the rest goes on in a new one;
    what the budget ends is left to the next run."""
    for loss, sizes in run.missing(stage).items():
        while sizes and run.left() > 15:
            print(f"\n{loss} {stage.dtypes} {' '.join(map(str, sizes))}: {stage.backends}", flush=True)
            part = run.scratch / f"{loss}-{stage.dtypes}-{sizes[0]}.json"
            share = stage.sampling * len(sizes) / len(stage.sizes)
            command = [
                "-m", "bench", "--device", run.device, "--losses", loss, "--sizes", ",".join(map(str, sizes)),
                "--dtypes", stage.dtypes, "--backends", stage.backends, "--seconds", f"{min(share, run.left() / 3):.1f}",
                "--out", str(part.with_suffix("")), "--brief",
            ]  # fmt: skip
            earlier = {name: run.result[name].copy() for name in ("rows", "unavailable", "compile_seconds")}
            limit = min(run.left(), 30 + SECONDS_OF_A_SIZE * len(sizes))
            status = child(command, limit, {}, partial(merge_part, run, part, earlier))
            sizes = [size for size in sizes if key(loss, size, stage.dtypes) not in run.result["compile_seconds"]]
            if status == 0 or not sizes or (status is None and run.left() <= 1):
                break
            reason = f"not finished in {limit:.0f} s" if status is None else f"the process ended with {status}"
            size = sizes.pop(0)
            place = {"loss": loss, "backend": stage.backends, "dtype": stage.dtypes, **size._asdict()}
            run.result["unavailable"].append({**place, "reason": reason})
            run.result["given_up"].append(key(loss, size, stage.dtypes))
            run.write()


def merge_part(run: Run, part: Path, earlier: dict) -> None:
    """What a stage has measured so far, added to what was there before it."""
    if part.exists():
        read = json.loads(part.read_text())
        for name, value in earlier.items():
            run.result[name] = {**value, **read[name]} if isinstance(value, dict) else value + read[name]
        run.write()


def run_tests(run: Run, limit: float, selection: tuple[str, ...] = ("tests",)) -> None:
    """The tests with device inputs that are not recorded yet; a process that dies is followed by another that goes on behind the test it
    died in."""
    log = run.log()
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
    nothing_left = status == 5 and bool(test_log.read(log))
    run.result["tests"].update(complete=status in (0, 1) or nothing_left, exit_status=status)
    run.write()
