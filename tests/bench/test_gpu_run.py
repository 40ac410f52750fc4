"""``make gpu`` goes on with earlier results, repeats nothing, and builds and prints what it must.

The tests cover everything of it that needs no GPU.
"""

from __future__ import annotations

import functools
import json
import stat
import time
import types

import cuda_host
import pytest
import torch

from bench import __main__ as cli
from bench import environment, report
from bench.gpu import __main__ as gpu
from bench.gpu import device_tests, small_case
from bench.gpu import library as gpu_library
from bench.gpu import run as gpu_run
from fused_contrastive.backends import cuda
from fused_contrastive.backends.cuda import _tiles

TINY = gpu.Stage("nt_xent,clip", "fp32", ("16x4",), 0.1, "eager,panels")


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch):
    """Makes the tests of a run go one by one, also where pytest-xdist is installed."""
    monkeypatch.setattr(gpu_run, "WORKERS", 1)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@functools.cache
def this_machine() -> dict:
    """Returns the description of this machine, which takes a second to make."""
    return environment.describe(torch.device("cpu"))


def described(**changes):
    card = {"name": "G", "driver": "1", "ptxas": {"version": "13"}, "cuda": "13"}
    return {**this_machine(), "gpu": card, **changes}


def opened(folder, **changes):
    run = gpu_run.Run.opened(described(**changes), folder, "gpu-g-", "make gpu", device="cpu")
    run.begin(300)
    return run


def rates():
    return {"gemm_bf16_tflops": 700.0, "gemm_fp32_tflops": 50.0, "copy_gb_per_s": 4000.0}


def test_a_run_goes_on_with_the_result_of_the_same_sources(tmp_path, monkeypatch):
    first = opened(tmp_path)
    assert opened(tmp_path).path == first.path
    assert opened(tmp_path, torch="9.9").path != first.path
    assert opened(tmp_path, backends={"cuda": "available: GPU"}).path != first.path, (
        "what was skipped can run now"
    )
    (tmp_path / "gpu-g-quick-2099-01-01.json").write_text(first.path.read_text())
    assert opened(tmp_path).path == first.path, "the quick version has results of its own"
    monkeypatch.setattr(environment, "digest", lambda folders, more="": "other sources")
    assert opened(tmp_path).path not in (first.path,)


def test_a_sweep_ends_with_its_budget_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    """A sweep ends with its budget, and the next one goes on and repeats nothing.

    The measuring is done in this process. The next tests start processes of their own.
    """

    def child(command, limit, extra, poll):
        assert command[:2] == ["-m", "bench"]
        status = cli.main(command[2:])
        poll()
        return status

    monkeypatch.setattr(gpu_run, "child", child)
    monkeypatch.setattr(environment, "describe", lambda device: this_machine())
    monkeypatch.setattr(gpu, "SWEEP", (TINY,))
    run = opened(tmp_path)
    # No process is started for a budget as short as this.
    run.begin(10)
    gpu.sweep(run, False, rates)
    assert not run.result["swept"] and not run.result["rows"] and not run.result["given_up"]
    run = opened(tmp_path)
    gpu.sweep(run, False, lambda: pytest.fail("rates measured again"))
    written = json.loads(run.path.read_text())
    report.validate(written)
    assert {(row["loss"], row["backend"]) for row in written["rows"]} == {
        (loss, backend) for loss in ("nt_xent", "clip") for backend in ("eager", "panels")
    }
    assert written["swept"] and written["rates"] == rates()
    monkeypatch.setattr(gpu_run, "child", lambda *a: pytest.fail("measured again"))
    again = opened(tmp_path)
    gpu.sweep(again, False, rates)
    assert again.result["rows"] == written["rows"]


def test_a_stage_goes_on_after_the_size_at_which_its_process_died(tmp_path):
    run = opened(tmp_path)
    # An odd N ends the process with 2.
    stage = gpu.Stage("nt_xent", "fp32", ("15x4", "16x4"), 0.1, "eager,panels")
    gpu.run_rows(run, stage)
    written = json.loads(run.path.read_text())
    report.validate(written)
    assert {row["N"] for row in written["rows"]} == {16}
    assert [(entry["N"], entry["reason"]) for entry in written["unavailable"]] == [
        (15, "the process ended with 2")
    ]
    assert written["given_up"] == ["nt_xent 15x4 fp32"] and not run.missing(stage)


def test_a_hanging_process_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "SECONDS_OF_A_SIZE", -29.0)
    run = opened(tmp_path)
    gpu.run_rows(run, gpu.Stage("nt_xent", "fp32", ("16x4",), 0.1, "eager"))
    assert [entry["reason"] for entry in run.result["unavailable"]] == ["not finished in 1 s"]


def test_tests_recorded_are_not_run_again(tmp_path, monkeypatch):
    chosen = ("tests/losses/test_edge_cases.py::test_ties_are_hits",)
    run = opened(tmp_path)
    gpu.run_tests(run, 120, chosen)
    tests = run.result["tests"]
    assert tests["complete"] and tests["passed"] >= 2 and not tests["failed"] and run.tests_done()
    # On another machine the file is all there is. Pytest is told to leave out what it holds.
    again = opened(tmp_path)
    again.result["tests"]["complete"] = False

    def nothing_left(command, limit, extra, poll, log):
        assert set(json.loads(device_tests.earlier(log).read_text())) == set(run.result["outcomes"])
        return 5

    monkeypatch.setattr(gpu_run, "child", nothing_left)
    gpu.run_tests(again, 120, chosen)
    assert again.result["tests"] == {**tests, "exit_status": 5}
    assert again.result["outcomes"] == run.result["outcomes"]
    monkeypatch.setattr(gpu_run, "child", lambda *a: None)
    again.result["tests"]["complete"] = False
    gpu.run_tests(again, 120, chosen)
    assert again.result["tests"]["passed"] == tests["passed"], (
        "a process that records nothing takes nothing away"
    )
    again = opened(tmp_path)
    again.result["tests"]["complete"] = True
    monkeypatch.setattr(gpu_run, "child", lambda *a: pytest.fail("run again"))
    monkeypatch.setattr(small_case, "sanitizer", lambda: None)
    gpu.verify(again, False)
    assert set(again.result["sanitizer"].values()) == {"not run: no compute-sanitizer here"}
    monkeypatch.setattr(environment, "digest", lambda folders, more="": "other tests")
    assert not again.tests_done() and again.result["outcomes"] == {}


CONFTEST = """
import pytest
def pytest_addoption(parser):
    parser.addoption("--device")
@pytest.fixture
def device(): ...
"""
DEADLY = """
import os, time, pytest
from bench.gpu import device_tests
ENDS = {"abort": os.abort, "hang": lambda: time.sleep(300)}
@pytest.mark.parametrize("how", ["first", "abort", "hang", "last"])
def test_it(device, how):
    device_tests._launching("deadly" if how in ENDS else "sound")
    ENDS.get(how, bool)()
"""


def test_a_test_that_dies_or_hangs_has_failed_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "SILENT_SECONDS", 8.0)
    monkeypatch.setattr(environment, "kernel_hashes", lambda: {"deadly": "h", "sound": "h"})
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_deadly.py").write_text(DEADLY)
    run = opened(tmp_path)
    gpu.run_tests(run, 200, (str(tmp_path / "test_deadly.py"),))
    outcomes = {test.split("[")[1][:-1]: line for test, line in run.result["outcomes"].items()}
    assert outcomes == {
        "first": "passed sound",
        "abort": "failed deadly | its process ended with -6",
        "hang": "failed deadly | its process hung for 8 s",
        "last": "passed sound",
    }
    assert run.result["tests"]["complete"] and run.result["tests"]["failed"] == 2
    assert {name: state["passed"] for name, state in run.result["kernels"].items()} == {
        "deadly": False,
        "sound": True,
    }


def test_of_several_tests_under_way_the_one_that_hangs_has_failed(tmp_path, monkeypatch):
    """When parallel workers leave several tests unfinished, the one that hangs has failed.

    Which test it was shows when they run one by one.
    """
    calls = []

    def child(command, limit, extra, poll, log):
        chosen = command[2 : command.index("--device")]
        done = set(json.loads(device_tests.earlier(log).read_text()))
        calls.append(chosen)
        # At first there are three workers, and one of them hangs.
        if chosen == ["tests"] and not done:
            lines, status = [("a", True), ("bad", False), ("slow", False)], gpu_run.HUNG
        elif chosen == ["bad", "slow"]:
            lines, status = [("bad", False)], -11
        else:
            lines, status = (
                [
                    (test, True)
                    for test in ("slow", "z")
                    if test not in done and test in (*chosen, "z")
                ],
                0,
            )
            lines = [line for line in lines if chosen == ["tests"] or line[0] in chosen]
        with open(log, "a") as file:
            for test, ended in lines:
                file.write(json.dumps({"test": test, "started": True}) + "\n")
                if ended:
                    file.write(
                        json.dumps({"test": test, "outcome": "passed", "when": "teardown"}) + "\n"
                    )
        return status

    monkeypatch.setattr(gpu_run, "child", child)
    run = opened(tmp_path)
    gpu.run_tests(run, 100)
    assert calls == [["tests"], ["bad", "slow"], ["slow"], ["tests"]]
    assert run.result["outcomes"] == {
        "a": "passed",
        "bad": "failed | its process ended with -11",
        "slow": "passed",
        "z": "passed",
    }
    assert run.result["tests"]["complete"] and run.tests_done()


def test_the_clock_starts_before_the_library_is_built(tmp_path, monkeypatch):
    now, parts = [1000.0], {}
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "G")
    monkeypatch.setattr(gpu, "describe", described)
    monkeypatch.setattr(gpu, "conclude", lambda run: 0)

    def ready(capability, seconds):
        parts["build"] = seconds
        now[0] += 40
        return "built"

    def part(name):
        def does(run, quick):
            parts[name] = run.left()
            now[0] += run.left()

        return does

    monkeypatch.setattr(gpu_library, "ready", ready)
    for name in gpu.PARTS:
        monkeypatch.setattr(gpu, name, part(name))
    assert gpu.main(["--quick", "--out", str(tmp_path)]) == 0
    assert parts == {"build": 42, "verify": 20, "sweep": 60, "ranks": 60} and now[0] == 1180
    assert gpu.main(["--out", str(tmp_path)]) == 0
    assert parts == {"build": 315, "verify": 410, "sweep": 450, "ranks": 450}


def test_every_operator_has_a_source():
    x = types.SimpleNamespace(dtype=torch.bfloat16, is_cuda=False, itemsize=2)
    names = {
        device_tests.source_of(name, (x,))
        for name in ("prepare", "terms", "finish_forward", "pair_reduce")
    }
    for dtype in (torch.float16, torch.float64):
        names.add(
            device_tests.source_of(
                "pair_weight", (types.SimpleNamespace(dtype=dtype, is_cuda=False),)
            )
        )
    names |= {
        device_tests.source_of("fused_rows", (torch.ones(1), float32)) for float32 in (0, 1, 2)
    }
    none = types.SimpleNamespace(dtype=torch.int64)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = types.SimpleNamespace(dtype=dtype)
        names.add(device_tests.source_of("force_group", (x, none)))
        assert device_tests.source_of("force_inverses", (none, x)) in names
    names.add(device_tests.source_of("sigmoid_terms", (x,)))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = types.SimpleNamespace(dtype=dtype, is_cuda=False, itemsize=2)
        names.add(device_tests.source_of("sigmoid_weight", (x,)))
    names |= {
        device_tests.source_of("sigmoid_reduce", (torch.ones(1), float32)) for float32 in (0, 1, 2)
    }
    assert names | {"cuda/similarity_sm90", "cuda/sigmoid_sm90"} == {
        name for name in environment.kernel_hashes() if name.startswith("cuda/")
    }
    assert (
        device_tests.source_of("pair_reduce", (torch.ones(1), _tiles.FMA)) == "cuda/similarity_fma"
    )


def test_the_plugin_notes_launches(monkeypatch):
    calls = []
    recorder = device_tests.Recorder(types.SimpleNamespace(prepare=lambda *a: calls.append(a)))
    monkeypatch.setattr(device_tests, "_launched", set())
    recorder.prepare(1, 2)
    assert calls == [(1, 2)] and device_tests._launched == {"cuda/prepare"}


def test_compute_sanitizer(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    monkeypatch.setattr(small_case, "sanitizer", lambda: str(tool))

    def does(commands):
        tool.write_text(f"#!/bin/sh\n{commands}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    for status, verdict in (
        (0, "passed"),
        (small_case.FAULTS, "failed: exit 9, ERROR SUMMARY: 3 errors"),
        (1, "not run: exit 1, no driver.so"),
    ):
        summary = "========= ERROR SUMMARY: 3 errors"
        does(f"echo 'no /usr/lib/driver.so' >&2; echo '{summary}'; exit {status}")
        assert small_case.sanitize(20) == dict.fromkeys(small_case.TOOLS, verdict)
    # This process has a child that keeps the pipes open.
    does("sleep 60 & wait")
    began = time.monotonic()
    said = small_case.sanitize(0.4, {"memcheck": "passed"})
    assert (
        said == {"memcheck": "passed", "racecheck": "not finished in 0 s"}
        and time.monotonic() - began < 30
    )
    run = opened(tmp_path / "results")
    monkeypatch.setattr(run, "tests_done", lambda: True)
    run.result["sanitizer"] = said
    does("exit 0")
    gpu.verify(run, False)
    assert run.result["sanitizer"] == dict.fromkeys(small_case.TOOLS, "passed")
    monkeypatch.setattr(small_case, "sanitize", lambda *a: pytest.fail("run again"))
    gpu.verify(run, False)
    monkeypatch.undo()
    monkeypatch.setattr(small_case, "sanitizer", lambda: str(tmp_path))
    assert small_case.sanitize(20)["racecheck"].startswith("not run: ")


@pytest.mark.skipif(cuda_host.compiler() is None, reason="the host shim needs a C++ compiler")
def test_the_small_case_reaches_every_kernel(monkeypatch):
    monkeypatch.setattr(device_tests, "_launched", set())
    monkeypatch.setitem(cuda.LIBRARIES, "cpu", device_tests.Recorder(cuda_host.load().operators))
    assert small_case.main("cpu") == 0
    assert device_tests._launched == {
        f"cuda/{name}"
        for name in (
            "prepare finish similarity_bf16 similarity_f16 similarity_f64 similarity_tf32x3 "
            "force_bf16 force_f16 force_f32 force_f64"
        ).split()
    }


def test_the_end_of_a_run(tmp_path, capsys):
    run = opened(tmp_path)
    run.result["library"] = "prebuilt"
    run.result["tests_of"] = environment.digest(("tests",))
    tests = {
        "passed": 3,
        "failed": 0,
        "skipped": 1,
        "failures": [],
        "skip_reasons": {},
        "complete": True,
    }
    run.result["tests"] = tests
    assert gpu.conclude(run) == 0
    assert "the same command goes on with it" in capsys.readouterr().out
    run.result.update(swept=True, sanitizer={"memcheck": "passed"})
    assert gpu.conclude(run) == 0 and run.result["complete"]
    for tool in small_case.TOOLS:
        run.result["sanitizer"] = {tool: "failed: exit 9"}
        assert gpu.conclude(run) == 1
        run.result["sanitizer"] = {tool: "not run: exit 1"}
        assert gpu.conclude(run) == 0
    run.result.update(
        sanitizer={}, tests={**tests, "failed": 1, "failures": [{"test": "t", "message": "wrong"}]}
    )
    assert gpu.conclude(run) == 1
    assert "t: wrong" in capsys.readouterr().out
