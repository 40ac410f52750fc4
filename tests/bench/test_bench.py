"""The benchmark harness works on tiny sizes and synthetic timings. No speed is asserted here."""

from __future__ import annotations

import json

import pytest
import torch

from bench import __main__ as cli
from bench import environment, measure, memory, report, rows
from bench.gpu import __main__ as gpu
from bench.gpu import device_tests
from bench.gpu import run as gpu_run
from bench.losses import LOSSES, Size, flops, make_inputs, parse_size
from fused_contrastive.backends import dispatch

SIZES = {"contrastive_force": Size(6, 2, 4), "cpc": Size(6, 3, 4), "info_nce_queue": Size(6, 10, 4)}


@pytest.mark.parametrize("loss", LOSSES)
def test_both_forms_of_every_loss_agree(loss):
    size = SIZES.get(loss, Size(6, 0, 4))
    inputs = make_inputs(loss, size, torch.float64, torch.device("cpu"))
    fused = measure.Step(LOSSES[loss].call, inputs).gradients()
    dense = measure.Step(LOSSES[loss].eager, inputs).gradients()
    assert len(fused) == len(inputs) - len(LOSSES[loss].constants(size))
    assert measure.relative_error(fused, dense) < 1e-12
    assert all(float(g.norm()) > 0 for g in dense)


def test_flops_are_those_of_the_algorithms():
    N, D = 8192, 128
    size = Size(N, 0, D)
    assert [flops("nt_xent", size, which, False) for which in ("forward", "backward", "full")] == [
        N * N * D,
        3 * N * N * D,
        4 * N * N * D,
    ]
    assert flops("nt_xent", size, "full", True) == 6 * N * N * D
    assert flops("clip", size, "full", False) == 8 * N * N * D
    assert flops("info_nce_queue", Size(256, 65536, D), "full", False) == 4 * 256 * 65536 * D
    assert flops("cpc", Size(100, 12, D), "forward", False) == 2 * 12 * 100 * 100 * D


@pytest.mark.parametrize("text", ["64", "0x4", "axb", "1x2x3x4"])
def test_malformed_sizes_are_refused(text):
    with pytest.raises(ValueError):
        parse_size(text)


def test_rounds_interleave_all_contenders():
    order = []

    def contender(name, seconds):
        def sample(repeats):
            order.append(name)
            return seconds, seconds

        return sample

    contenders = {name: contender(name, 1.0) for name in "abc"}
    samples = measure.interleave(contenders, 0.0, dict.fromkeys("abc", 2.0), least=6)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 6, "b": 6, "c": 6}
    rounds = [order[k : k + 3] for k in range(0, len(order), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1, "the order within rounds should change"


def test_the_budget_sets_the_rounds_and_short_steps_repeat():
    repeats = {"quick": [], "slow": []}
    contenders = {
        "quick": lambda n: repeats["quick"].append(n) or (1e-5, 0.0),
        "slow": lambda n: repeats["slow"].append(n) or (0.5, 0.5),
    }
    samples = measure.interleave(contenders, 10.0, {"quick": 1e-5, "slow": 1.0})
    # The budget of 10 s holds 9 rounds of 1.001 s.
    assert samples["slow"] == [(0.5, 0.5)] * 9
    # A sample lasts about a millisecond, so that the quick step is repeated.
    assert repeats == {"quick": [100] * 9, "slow": [1] * 9}


def test_quartiles_and_paired_ratios():
    assert measure.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert measure.quartiles([7.0]) == (7.0, 7.0, 7.0)
    # The machine is three times slower in the last two rounds, but ratios within rounds are not.
    assert measure.paired_ratio([10.0, 10.0, 30.0, 30.0], [2.0, 2.0, 6.0, 6.0]) == (5.0, 5.0, 5.0)
    with pytest.raises(ValueError):
        measure.paired_ratio([1.0], [1.0, 2.0])


def test_tf32_is_asked_for_and_taken_back_whichever_way_it_was_set():
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    with measure.matmul_precision(True):
        assert torch.get_float32_matmul_precision() == "high"
        with measure.matmul_precision(False):
            assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    newer = matmul.fp32_precision
    try:
        for setting in ("ieee", "tf32"):
            matmul.fp32_precision = setting
            with measure.matmul_precision(False):
                assert matmul.fp32_precision == setting
            with pytest.raises(KeyError), measure.matmul_precision(True):
                assert matmul.fp32_precision == "tf32"
                raise KeyError
            assert matmul.fp32_precision == setting
    finally:
        matmul.fp32_precision = newer
    assert torch.get_float32_matmul_precision() == before


def test_the_command_line_writes_json_markdown_and_plot(tmp_path, capsys):
    out = tmp_path / "tiny"
    arguments = [
        "--losses",
        "nt_xent,info_nce_queue",
        "--backends",
        "eager,panels",
        "--dtypes",
        "fp32,tf32",
        "--seconds",
        "0.1",
        "--no-memory",
    ]
    # The queue needs a size in the form NxKxD.
    assert cli.main([*arguments, "--sizes", "16x8", "--out", str(out)]) == 2
    assert "NxKxD" in capsys.readouterr().err
    assert (
        cli.main(["--losses", "nt_xent", *arguments[2:], "--sizes", "16x8,34x5", "--out", str(out)])
        == 0
    )
    result = json.loads((tmp_path / "tiny.json").read_text())
    report.validate(result)
    assert result["complete"]
    assert result["kind"] == "cpu"
    assert {(r["N"], r["D"], r["backend"], r["pass"]) for r in result["rows"]} == {
        (N, D, backend, which)
        for N, D in ((16, 8), (34, 5))
        for backend in ("eager", "panels")
        for which in ("forward", "backward", "full")
    }
    assert all(
        r["ms"] > 0 and r["rounds"] >= 5 and r["gradient_error"] < 1e-5 for r in result["rows"]
    )
    assert {entry["reason"] for entry in result["unavailable"]} == {"tf32 needs a CUDA device"}
    assert result["environment"]["threads"] == torch.get_num_threads()
    page = (tmp_path / "tiny.md").read_text()
    assert page.count("| nt_xent |") == len(result["rows"])
    assert "tf32 needs a CUDA device" in page
    pytest.importorskip("matplotlib")
    assert (tmp_path / "tiny.png").stat().st_size > 1000


def test_a_failing_contender_is_reported_and_the_others_go_on(monkeypatch):
    def refuse(*inputs):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(
        rows.contenders,
        "function",
        lambda loss, name: refuse if name == "compile" else LOSSES[loss].eager,
    )
    group = rows.Group("nt_xent", Size(16, 0, 4), (("eager", "fp32"), ("compile", "fp32")))
    measured = rows.run_group(group, rows.Plan(torch.device("cpu")), 0.0)
    assert [entry["reason"] for entry in measured["unavailable"]] == [
        "RuntimeError: no C++ compiler"
    ]
    assert {row["backend"] for row in measured["rows"]} == {"eager"}
    assert all(row["x_compile"] is None for row in measured["rows"])


def test_a_wrong_gradient_gives_no_row(monkeypatch):
    def doubled(z1, z2):
        return 2 * LOSSES["nt_xent"].eager(z1, z2)

    monkeypatch.setattr(
        rows.contenders,
        "function",
        lambda loss, name: doubled if name == "panels" else LOSSES[loss].eager,
    )
    group = rows.Group("nt_xent", Size(16, 0, 4), (("eager", "fp32"), ("panels", "fp32")))
    measured = rows.run_group(group, rows.Plan(torch.device("cpu")), 0.0)
    assert {row["backend"] for row in measured["rows"]} == {"eager"}
    assert [entry["reason"] for entry in measured["unavailable"]] == [
        "wrong gradient: relative error 1.0e+00"
    ]
    errors = {
        ("eager", "bf16"): 1e-3,
        ("a", "bf16"): 9e-3,
        ("b", "bf16"): 2e-2,
        ("c", "fp32"): float("nan"),
        ("d", "fp32"): 0.01,
    }
    assert set(rows.wrong(errors)) == {("b", "bf16"), ("c", "fp32")}


def test_dense_contenders_are_refused_where_they_would_exhaust_memory(monkeypatch):
    monkeypatch.setattr(rows.contenders, "available_bytes", lambda: 16 * 64 * 64)
    tight, large = Size(64, 0, 4), Size(66, 0, 4)
    assert rows.contenders.too_large("nt_xent", "eager", Size(62, 0, 4), "fp32") is None
    assert "of memory" in rows.contenders.too_large("nt_xent", "eager", tight, "fp32")
    assert rows.contenders.too_large("nt_xent", "eager", tight, "bf16") is None
    assert rows.contenders.too_large("nt_xent", "panels", large, "fp32") is None
    measured = rows.run_group(
        rows.Group("nt_xent", large, (("eager", "fp32"), ("panels", "fp32"))),
        rows.Plan(torch.device("cpu")),
        0.0,
    )
    assert {row["backend"]: row["x_eager"] for row in measured["rows"]} == {"panels": None}


@pytest.mark.skipif(memory.unsupported() is not None, reason=str(memory.unsupported()))
def test_resident_peak_sees_the_dense_matrix():
    jobs = [
        ("nt_xent", name, Size(N, 0, 16), "fp32", "full")
        for name, N in (("eager", 2048), ("unknown", 2050))
    ]
    peaks = memory.measure(jobs, 120)
    matrix = 4 * 2048 * 2048
    assert matrix <= peaks[jobs[0]] < 12 * matrix
    assert "ended with 1" in peaks[jobs[1]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_run_without_a_gpu_says_why_and_writes_nothing(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_result_names_never_overwrite(tmp_path):
    assert gpu_run.unused(tmp_path, "gpu-x").name == "gpu-x.json"
    (tmp_path / "gpu-x.json").touch()
    assert gpu_run.unused(tmp_path, "gpu-x").name == "gpu-x-2.json"


def test_device_tests_skip_what_an_earlier_process_recorded(tmp_path, monkeypatch):
    class Item:
        def __init__(self, nodeid, *fixtures):
            self.nodeid, self.fixturenames = nodeid, fixtures

    class Config:
        class hook:
            @staticmethod
            def pytest_deselected(items):
                pass

    log = tmp_path / "tests.jsonl"
    monkeypatch.setenv(device_tests.LOG, str(log))
    device_tests.earlier(log).write_text(json.dumps(["done"]))
    items = [
        Item("done", "device"),
        Item("left", "device", "backend"),
        Item("host only", "tmp_path"),
    ]
    device_tests.pytest_collection_modifyitems(Config, items)
    assert [item.nodeid for item in items] == ["left"]


def test_results_name_no_folders(monkeypatch, tmp_path):
    reason = f"cannot import name 'x' ({tmp_path}/a/launch.py), and/or 1/2 of {tmp_path}/b.so"
    assert (
        environment.without_paths(reason)
        == "cannot import name 'x' (launch.py), and/or 1/2 of b.so"
    )
    monkeypatch.setattr(
        "sys.argv", ["bench", "--quick", "--out", str(tmp_path / "x"), "--device", "cpu"]
    )
    assert environment.command_line("bench") == "python -m bench --quick --device cpu"


def test_names_of_devices():
    assert environment.slug("NVIDIA H200") == "h200"
    assert (
        environment.slug("Intel(R) Xeon(R) Platinum 8488C @ 2.4GHz") == "intel-xeon-platinum-8488c"
    )
    assert set(cli.contenders.KNOWN) == set(dispatch.NAMES) - {"eager"}
