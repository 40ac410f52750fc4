"""The doctor reports what is here, says what is not, and fails where something fails."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

import fused_contrastive as fc
from fused_contrastive.__main__ import main
from fused_contrastive.backends import cpu, dispatch
from fused_contrastive.tools import doctor, machine, self_test, speed

pytestmark = pytest.mark.no_poison
CPU = torch.device("cpu")
HAS_KERNELS = cpu.refusal(CPU, torch.float32) is None
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason=cpu.status())


ALL_CASES = self_test.CASES
ONE_OF_EACH_FAMILY = tuple({case.family: case for case in ALL_CASES}.values())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Time small sizes, once or twice, test few cases, and look at the CPU alone."""
    monkeypatch.setattr(self_test, "CASES", ONE_OF_EACH_FAMILY)
    monkeypatch.setattr(speed, "SIZES", {"cpu": (4, 8)})
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(machine, "devices", lambda: [CPU])


def in_a_fresh_process(code: str, **environment) -> subprocess.CompletedProcess:
    """Run `code` in a new interpreter, where the doctor times small sizes only."""
    before = """
        import sys
        def report():
            from fused_contrastive.tools import doctor, self_test, speed
            self_test.CASES = self_test.CASES[::5]
            speed.SIZES, speed.SECONDS = {"cpu": (4,), "cuda": (4,)}, 0.0
            found = doctor.examine()
            print(doctor.describe(found))
            return found
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(before) + textwrap.dedent(code)],
        env=os.environ | {"TRITON_INTERPRET": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_json(capsys, monkeypatch):
    """The report has a row for everything, and the exit status is 0."""
    monkeypatch.setattr(self_test, "CASES", ALL_CASES)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["machine"]["fused_contrastive"] == fc.__version__
    assert report["machine"]["torch"] == torch.__version__
    assert report["backends"] == fc.backends()
    served = {(row["family"], row["dtype"]): row for row in report["serving"]}
    assert len(served) == len(report["serving"]) == 3 * 4
    for row in served.values():
        assert row["backend"] == ("cpu" if HAS_KERNELS else "panels")
        assert set(row["others"]) == set(dispatch.NAMES) - {row["backend"]}
        assert all(row["others"].values())
    tested = {(row["backend"], row["dtype"], row["case"]) for row in report["self_test"]}
    assert len(tested) >= (4 if HAS_KERNELS else 3) * len({c.name for c in ALL_CASES})
    assert [row["pairs"] for row in report["speed"]] == [4, 8]
    assert all(row["ms"] > 0 and row["eager_ms"] > 0 for row in report["speed"])


def test_text(capsys):
    """The block to paste stands between fences, and names nobody's home."""
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    block = text.split("```")[1]
    for part in (
        "torch: " + torch.__version__,
        "Which backend serves",
        "not 'eager': it is the dense reference",
        "Self-test against float64:",
        "times as fast",
    ):
        assert part in block, text
    home = os.path.expanduser("~")
    assert len(home) < 2 or home + os.sep not in block
    assert text.rstrip().endswith("Everything that can be tested here works.")


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and "doctor" in capsys.readouterr().err


@needs_kernels
@pytest.mark.parametrize("case", ALL_CASES, ids=lambda c: f"{c.family}, {c.name}")
def test_every_case_passes_with_room_to_spare(case):
    """Every kernel is well inside of what is allowed, in every dtype."""
    for dtype in doctor.DTYPES:
        verdict = self_test.check(case, "cpu", CPU, dtype)
        assert verdict.failure is None and verdict.worst < 0.8, verdict


def wrong(name: str, position: int, factor: float):
    """Return the CPU backend's function `name`, with one of its outputs multiplied."""
    original = getattr(cpu, name)

    def call(*arguments):
        outputs = list(original(*arguments))
        outputs[position] = outputs[position] * factor
        return tuple(outputs)

    return call


@needs_kernels
@pytest.mark.parametrize(
    ("name", "position", "names"),
    (
        ("similarity_forward", 0, "rows is off"),
        ("similarity_forward", 3, "loss is off"),
        ("similarity_backward", 0, "the gradient of a is off"),
        ("similarity_backward", 1, "the gradient of b is off"),
        ("similarity_backward", 2, "the gradient of scale is off"),
        ("similarity_backward", 3, "the gradient of bias is off"),
        ("sigmoid_forward", 0, "rows is off"),
        ("sigmoid_backward", 3, "the gradient of row_bias is off"),
        ("force_forward", 0, "force is off"),
    ),
)
def test_a_wrong_kernel_is_noticed(monkeypatch, name, position, names):
    """One output of one kernel is off by a factor of 1.0001."""
    monkeypatch.setattr(cpu, name, wrong(name, position, 1.0001))
    family = name.partition("_")[0]
    failures = [
        self_test.check(case, "cpu", CPU, torch.float32).failure or ""
        for case in ALL_CASES
        if case.family == family
    ]
    assert any(names in failure for failure in failures), failures


@needs_kernels
def test_failures_are_problems(monkeypatch, capsys):
    """A wrong kernel, and one that raises, are told, and the exit status is 1."""
    monkeypatch.setattr(cpu, "similarity_forward", wrong("similarity_forward", 0, float("nan")))

    def broken(*arguments):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(cpu, "sigmoid_backward", broken)
    assert main(["doctor", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(x.startswith("similarity, ") and "rows is off by inf" in x for x in problems)
    assert any("it raised RuntimeError: no kernel image" in x for x in problems)
    assert not any(x.startswith("force") for x in problems)
    main(["doctor"])
    assert "things fail: see Problems." in capsys.readouterr().out


def test_a_part_that_fails_is_a_problem(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *a: 1 / 0)
    report = doctor.examine()
    assert report["speed"] == [] and report["self_test"]
    (problem,) = report["problems"]
    assert "Time NT-Xent beside the eager form" in problem and "ZeroDivisionError" in problem
    assert "nothing could be timed" in doctor.describe(report)


def test_a_library_that_does_not_load_is_a_problem(monkeypatch, tmp_path):
    """The sentence of the backend is told, whatever is wrong with the library."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "_C_cpu.so").touch()
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "tools" / "doctor.py"))
    status = "unavailable: built for torch 2.11.0, this is torch 2.13.0"
    (problem,) = doctor.broken_libraries({"cpu": status})
    assert "_C_cpu.so cannot be used: built for torch 2.11.0" in problem
    assert doctor.broken_libraries({"cpu": "available: avx2"}) == []


def test_what_cannot_be_found_out_is_said(monkeypatch):
    def broken(*arguments, **options):
        raise OSError("no such thing")

    monkeypatch.setattr(shutil, "which", broken)
    monkeypatch.setattr(torch, "get_num_threads", broken)
    facts = machine.describe()
    for name in ("cxx", "nvcc", "nvidia_driver", "threads"):
        assert facts[name].startswith("unknown (") and "no such thing" in facts[name], facts


def test_hints():
    facts = {"nvidia_driver": "560.1", "torch_built_for": "no CUDA and no ROCm"}
    rows = [{"backend": "panels", "device": "cpu"}]
    found = doctor.hints(
        {"machine": facts, "serving": rows, "backends": {"cpu": "unavailable: not built"}}
    )
    assert found == [
        "The slower backend 'panels' serves the CPU: not built.",
        "There is an NVIDIA driver (560.1), but torch was built for no CUDA and no ROCm.",
    ]


def test_a_bare_machine():
    """Without Triton, NumPy, compilers and compiled kernels the doctor works, and says so."""
    done = in_a_fresh_process(
        """
        for name in ("triton", "numpy", "fused_contrastive._C_cpu"):
            sys.modules[name] = None
        found = report()
        for part in ("serving", "self_test"):
            on_the_cpu = [row for row in found[part] if row["device"] == "cpu"]
            assert {row["backend"] for row in on_the_cpu} == {"panels"}, part
        assert not [row for row in found["self_test"] if row["failure"]]
        """,
        PATH="",
        CXX="c++",
        CUDA_HOME="",
    )
    assert done.returncode == 0, done.stderr
    assert "cxx: none found (c++ is not on the path)" in done.stdout
    assert "nvcc: none found (nvcc is not on the path)" in done.stdout
    assert "The slower backend 'panels' serves the CPU" in done.stdout


def test_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "fused_contrastive", "--help"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "doctor" in done.stdout
