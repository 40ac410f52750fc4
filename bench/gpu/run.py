"""This is one run of ``make gpu``: its result file and the stages that fill it.

A later run finds the file again and goes on with it. Each stage is a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from .. import environment, report
from ..environment import ROOT
from ..losses import Size, parse_size
from . import device_tests
from . import log as test_log
from . import ranks as over_ranks

SECONDS_OF_A_SIZE = 50.0
"""A process that takes longer (compiling included) is taken to hang."""
SILENT_SECONDS = 60.0
"""A test process that writes nothing for so long is taken to hang.

Before its first line it has twice as long.
"""
WORKERS = min(6, os.cpu_count() or 1)
"""The tests run in so many processes where pytest-xdist is installed."""
HUNG = 124
"""This exit status stands for a process that hung."""


class Stage(NamedTuple):
    """A stage has sizes that are measured in one process per loss.

    Timed rounds take `sampling` seconds.
    """

    losses: str
    dtypes: str
    sizes: tuple[str, ...]
    sampling: float
    backends: str = ""


def key(loss: str, size: Size, dtypes: str) -> str:
    """Returns the name of a group in results, which is the same as `rows.Group` prints."""
    return f"{loss} {size} {dtypes}"


def fingerprint(described: dict) -> str:
    """Returns what a result holds for.

    It covers the package's sources, the versions that compile them, the backends that are there,
    and the GPU.
    """
    gpu = described["gpu"] or {}
    versions = [described[name] for name in ("torch", "triton")] + [
        gpu.get(name) for name in ("name", "driver", "ptxas")
    ]
    there = [
        name for name, status in described["backends"].items() if status.startswith("available")
    ]
    return environment.digest(
        ("fused_contrastive", "triton_kernels", "csrc/cuda"), repr((versions, there))
    )


class Run:
    """This is a result being filled, where every change is written at once."""

    def __init__(self, result: dict, path: Path, device: str = "cuda"):
        self.result, self.path, self.device = result, path, device
        self.end = time.monotonic()
        self.scratch = Path(tempfile.mkdtemp(prefix="bench-gpu-"))

    @classmethod
    def opened(
        cls, described: dict, folder: Path, stem: str, command: str, device: str = "cuda"
    ) -> Run:
        """Returns the newest result in `folder` of these sources on this GPU.

        Where there is none, it is a new one, named `stem` and the date.
        """
        holds_for = fingerprint(described)
        for path in sorted(folder.glob(f"{stem}[0-9]*.json"), reverse=True):
            result = json.loads(path.read_text())
            if result.get("fingerprint") == holds_for:
                print(f"going on with {path.name}", flush=True)
                return cls(result, path, device)
        result = report.new_result("gpu", command, described)
        result.update(
            fingerprint=holds_for,
            rates={},
            tests=None,
            tests_of="",
            kernels={},
            sanitizer={},
            swept=False,
        )
        result.update(given_up=[], outcomes={})
        result["ranks"] = None
        run = cls(result, unused(folder, stem + result["date"]), device)
        run.write()
        return run

    def begin(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def write(self) -> None:
        report.write_json(self.result, self.path)

    def tests_done(self) -> bool:
        """Says whether every test of these files is recorded.

        Outcomes of other files are dropped.
        """
        now = environment.digest(("tests",))
        if self.result["tests_of"] != now:
            self.result.update(tests_of=now, tests=None, outcomes={})
        return bool(self.result["tests"] and self.result["tests"]["complete"])

    def missing(self, stage: Stage) -> dict[str, list[Size]]:
        """Returns the sizes of a stage that are still to be measured, by loss."""
        known = {*self.result["compile_seconds"], *self.result["given_up"]}
        wanted = {
            loss: [
                s for s in map(parse_size, stage.sizes) if key(loss, s, stage.dtypes) not in known
            ]
            for loss in stage.losses.split(",")
        }
        return {loss: sizes for loss, sizes in wanted.items() if sizes}


def unused(folder: Path, stem: str) -> Path:
    """Returns ``stem.json`` in `folder`.

    The name ends with -2, -3, ... where earlier runs of the day have it.
    """
    names = [stem, *(f"{stem}-{k}" for k in range(2, 100))]
    return next(folder / f"{name}.json" for name in names if not (folder / f"{name}.json").exists())


def child(
    command: list[str], limit: float, extra: dict[str, str], poll, log: Path | None = None
) -> int | None:
    """Runs a Python command from the checkout and calls `poll` every second.

    Returns its exit status, or None when it was out of time. It returns HUNG when `log` had long
    ceased to grow.
    """
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environ, start_new_session=True
    )
    began = grown = time.monotonic()
    size = 0
    try:
        while (now := time.monotonic()) < began + limit:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                poll()
            if log is not None and log.exists() and log.stat().st_size != size:
                size, grown = log.stat().st_size, now
            if log is not None and now - grown > SILENT_SECONDS * (1 if size else 2):
                return HUNG
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        poll()


def run_rows(run: Run, stage: Stage) -> None:
    """Measures what is missing of one stage.

    When its process dies or hangs, the size it died at is given up, and a new process goes on with
    the rest. What the budget ends is left to the next run.
    """
    for loss, sizes in run.missing(stage).items():
        while sizes and run.left() > 15:
            print(
                f"\n{loss} {stage.dtypes} {' '.join(map(str, sizes))}: {stage.backends}", flush=True
            )
            part = run.scratch / f"{loss}-{stage.dtypes}-{sizes[0]}.json"
            share = stage.sampling * len(sizes) / len(stage.sizes)
            seconds = min(share, run.left() / 3)
            command = ["-m", "bench", "--device", run.device, "--losses", loss]
            command += ["--sizes", ",".join(map(str, sizes)), "--dtypes", stage.dtypes]
            command += ["--backends", stage.backends, "--seconds", f"{seconds:.1f}"]
            command += ["--out", str(part.with_suffix("")), "--brief"]
            earlier = {
                name: run.result[name].copy() for name in ("rows", "unavailable", "compile_seconds")
            }
            limit = min(run.left(), 30 + SECONDS_OF_A_SIZE * len(sizes))
            status = child(command, limit, {}, partial(merge_part, run, part, earlier))
            sizes = [
                size
                for size in sizes
                if key(loss, size, stage.dtypes) not in run.result["compile_seconds"]
            ]
            if status == 0 or not sizes or (status is None and run.left() <= 1):
                break
            reason = (
                f"not finished in {limit:.0f} s"
                if status is None
                else f"the process ended with {status}"
            )
            size = sizes.pop(0)
            place = {
                "loss": loss,
                "backend": stage.backends,
                "dtype": stage.dtypes,
                **size._asdict(),
            }
            run.result["unavailable"].append({**place, "reason": reason})
            run.result["given_up"].append(key(loss, size, stage.dtypes))
            run.write()


def merge_part(run: Run, part: Path, earlier: dict) -> None:
    """Adds what a stage has measured so far to what was there before it."""
    if part.exists():
        read = json.loads(part.read_text())
        for name, value in earlier.items():
            run.result[name] = (
                {**value, **read[name]} if isinstance(value, dict) else value + read[name]
            )
        run.write()


def run_tests(run: Run, limit: float, selection: tuple[str, ...] = ("tests",)) -> None:
    """Runs the tests with device inputs that are not recorded yet.

    A test whose process died or hung has failed, and another process goes on behind it. Where
    several tests were under way, they run again one by one first.
    """
    run.tests_done()
    end = time.monotonic() + min(limit, run.left())
    hashes = environment.kernel_hashes()
    earlier = test_log.unpacked(run.result["outcomes"])
    options = (
        f"--device {run.device} -p bench.gpu.device_tests -p no:cacheprovider -q --tb=short".split()
    )
    parallel = ["-n", str(WORKERS)] if WORKERS > 1 and importlib.util.find_spec("xdist") else []

    def merge(new: dict[str, dict]) -> None:
        if set(new) - set(run.result["outcomes"]):
            outcomes = earlier | new
            run.result["outcomes"] = test_log.packed(outcomes)
            run.result["tests"] = test_log.summary(outcomes)
            run.result["kernels"] = test_log.kernels(outcomes, hashes)
            run.write()

    print("\ntests with inputs on the device", flush=True)
    status, suspects, part = None, [], 0
    while (left := end - time.monotonic()) > 5:
        log, part = run.scratch / f"tests-{part}.jsonl", part + 1
        device_tests.earlier(log).write_text(json.dumps(list(earlier)))
        command = [
            "-m",
            "pytest",
            *(suspects or selection),
            *options,
            *([] if suspects else parallel),
        ]
        status = child(
            command,
            left,
            {device_tests.LOG: str(log)},
            lambda log=log: merge(test_log.read(log)),
            log,
        )
        ended, begun = test_log.read(log), test_log.unfinished(log)
        all_run = status in (0, 1, 5)
        if not all_run and status is not None and len(begun) == 1:
            how = f"hung for {SILENT_SECONDS:.0f} s" if status == HUNG else f"ended with {status}"
            ended |= {
                test: {"outcome": "failed", "kernels": kernels, "message": f"its process {how}"}
                for test, kernels in begun.items()
            }
        merge(ended)
        earlier |= ended
        if status is None or (all_run and not suspects) or not (ended or begun or all_run):
            break
        suspects = (
            list(begun)
            if len(begun) > 1
            else [test for test in suspects if test not in earlier and not all_run]
        )
    if run.result["tests"]:
        complete = not suspects and (status in (0, 1) or (status == 5 and bool(earlier)))
        run.result["tests"].update(complete=complete, exit_status=status)
    run.write()


def run_ranks(run: Run, quick: bool) -> None:
    """Runs the losses over ranks (ranks.py), once for these sources and this number of GPUs."""
    world = torch.cuda.device_count() if run.device == "cuda" else 1
    earlier = run.result.get("ranks")
    if earlier and earlier["complete"] and earlier["world"] == world:
        return
    print(f"\nthe losses over {world} ranks", flush=True)
    out = run.scratch / "ranks.json"
    command = ["-m", "bench.gpu.ranks", "--out", str(out), "--device", run.device]
    command += ["--world", str(world), *(["--quick"] if quick else [])]

    def merge() -> None:
        # The file is rewritten while it is read; a part of it is read again a second later.
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            run.result["ranks"] = json.loads(out.read_text())
            run.write()

    run.result["ranks"] = over_ranks.unfinished(world)
    child(command, run.left(), {}, merge)
