"""The benchmark harness on tiny sizes and synthetic timings. No speed is asserted here."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from bench import __main__ as cli
from bench import environment, measure, memory, readme, report, rows
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
    assert samples["slow"] == [(0.5, 0.5)] * 9  # 10 s hold 9 rounds of 1.001 s
    assert repeats == {"quick": [100] * 9, "slow": [1] * 9}  # a sample lasts about a millisecond


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


def synthetic_rows():
    group = rows.Group("nt_xent", Size(1000, 0, 100), ())
    samples = {
        ("eager", "fp32"): [(1.0, 3.0), (2.0, 6.0), (1.0, 3.0)],
        ("compile", "fp32"): [(0.5, 1.5), (1.0, 3.0), (0.5, 1.5)],
        ("cpu", "fp32"): [(0.1, 0.3), (0.2, 0.6), (0.1, 0.3)],
        ("cpu", "bf16"): [(0.05, 0.15), (0.1, 0.3), (0.05, 0.15)],
        ("gemm", "fp32"): [(0.2, 0.0)] * 3,
        ("gemm", "bf16"): [(0.1, 0.0)] * 3,
    }
    measured = rows.rows_from_samples(
        group, samples, {"fp32": 2 * 10**8, "bf16": 2 * 10**8}, ("forward", "backward", "full")
    )
    for row in measured:
        row["gradient_error"] = None
    return measured


def test_rows_from_synthetic_samples():
    measured = {(r["backend"], r["dtype"], r["pass"]): r for r in synthetic_rows()}
    assert len(measured) == 12
    row = measured["cpu", "fp32", "full"]
    assert row["ms"] == pytest.approx(400)
    assert row["ms_quartiles"] == pytest.approx([400, 600])
    assert (row["x_eager"], row["x_compile"]) == pytest.approx((10, 5))
    assert row["flops"] == 4 * 10**8
    assert row["gflops"] == pytest.approx(1.0)
    assert row["gemm_gflops"] == pytest.approx(1.0)
    assert row["gemm_fraction"] == pytest.approx(1.0)
    assert measured["cpu", "bf16", "backward"]["x_fp32"] == pytest.approx(2)
    assert measured["cpu", "bf16", "full"]["x_eager"] is None  # no eager run in that dtype
    assert measured["eager", "fp32", "forward"]["flops"] == 2 * 10**8
    assert measured["compile", "fp32", "forward"]["x_eager"] == pytest.approx(2)


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
    assert (
        cli.main([*arguments, "--sizes", "16x8", "--out", str(out)]) == 2
    )  # the queue needs NxKxD
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


def test_validate_names_what_is_missing():
    result = report.new_result("cpu", "", {})
    result["rows"] = synthetic_rows()
    report.validate(result)
    del result["rows"][0]["gemm_fraction"]
    with pytest.raises(ValueError, match="gemm_fraction"):
        report.validate(result)
    with pytest.raises(ValueError, match="missing"):
        report.validate({"schema": 1, "rows": []})


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


@functools.cache
def this_machine() -> dict:
    """The description of this machine, which takes a second to make."""
    return environment.describe(torch.device("cpu"))


def result_file(folder, name, kind, day, **extra):
    described = {**this_machine(), "gpu": extra.pop("gpu", None)}
    result = report.new_result(kind, f"python -m bench {name}", described)
    result.update(rows=synthetic_rows(), date=day, **extra)
    (folder / f"{name}.json").write_text(json.dumps(result))
    return result


def test_readme_tables_come_from_the_newest_result(tmp_path):
    text = "a\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nb\n"
    for kind in ("gpu", "peers", "losses", "kernels", "force", "accuracy"):
        text += f"<!-- bench:{kind} -->\n<!-- /bench:{kind} -->\n"
    unmeasured = readme.generated(text, tmp_path)
    assert "Nothing has been measured on a GPU yet." in unmeasured
    assert "Nothing has been measured on a CPU yet." in unmeasured
    result_file(tmp_path, "cpu-one-2025-01-01", "cpu", "2025-01-01")
    result_file(tmp_path, "cpu-one-2025-03-01", "cpu", "2025-03-01")
    new = readme.generated(text, tmp_path)
    assert "old" not in new
    assert "cpu-one-2025-03-01.json" in new
    assert "cpu-one-2025-01-01" not in new
    lines = [" ".join(line.split()) for line in new.splitlines()]
    assert "| 1000 | 100 | fp32 | 4000 | 2000 | 400 | 10.0 | 5.00 | 1.00 | - | - |" in lines
    assert readme.generated(new, tmp_path) == new
    assert new.startswith("a\n<!-- bench:cpu -->\n|") and new.endswith(
        "not yet measured\n<!-- /bench:accuracy -->\n"
    )
    with pytest.raises(ValueError, match="bench:cpu"):
        readme.generated("no markers", tmp_path)


def test_every_other_loss_has_sizes_and_a_row_of_its_newest_result(tmp_path):
    assert {"nt_xent", *cli.OTHER_SIZES} == set(LOSSES)
    for day, ms in (("2025-01-01", 1.0), ("2025-02-01", 2.0)):
        result = result_file(tmp_path, f"cpu-{day}", "cpu", day)
        for row in result["rows"]:
            row.update(loss="siglip", ms=ms * row["ms"])
        (tmp_path / f"cpu-{day}.json").write_text(json.dumps(result))
    lines = [" ".join(line.split()) for line in readme.losses(tmp_path).splitlines()]
    assert "| siglip | 1000 | 100 | fp32 | 8000 | 4000 | 800 | 10.0 | 5.00 | - | - |" in lines
    assert "cpu-2025-02-01.json" in lines[-1] and "cpu-2025-01-01" not in lines[-1]


def test_predictions_stand_beside_measurements(tmp_path):
    unmeasured = readme.kernels(tmp_path)
    assert "|" not in unmeasured, "a table without a measurement would say nothing"
    count = len(environment.kernel_hashes())
    assert f"No GPU has run any of the {count} kernels as they are now" in unmeasured
    row = next(r for r in synthetic_rows() if r["pass"] == "full") | {
        "N": 16384,
        "D": 128,
        "dtype": "bf16",
    }
    card = {"name": "H200", "driver": "1", "cuda": "13"}
    states = {
        name: {"hash": h, "passed": name != "cuda/finish", "tests": 1}
        for name, h in environment.kernel_hashes().items()
    }
    profile = [("pair_reduce_kernel", 1.0), ("void pair_reduce<f>()", 68.7), ("gemm", 100.0)]
    result = result_file(tmp_path, "gpu-h", "gpu", "2025-01-01", gpu=card, kernels=states)
    result |= {
        "tests": {"complete": True},
        "rates": {"gemm_bf16_tflops": 800.0, "gemm_fp32_tflops": 50.0},
        "rows": [
            row | {"backend": "cuda", "kernels": profile},
            row
            | {"loss": "contrastive_force", "N": 4096, "K": 1, "dtype": "fp32", "backend": "cuda"}
            | {"kernels": [("void force_distances<float>(ForceParams)", 1000.0)]},
        ],
    }
    (tmp_path / "gpu-h.json").write_text(json.dumps(result))
    text = readme.kernels(tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| pair_reduce | 128 | 380 - 480 TFLOP/s | - | 500 (0.63) |" in lines
    assert not any("pair_weight" in line for line in lines), "what was not measured has no row"
    assert "| force_distances | 128 | 25 - 32 TFLOP/s | - | 26 (0.52) |" in lines
    assert "H200 (driver 1, CUDA 13)" in text and "No GPU has run" not in text
    assert lines[-1] == "These kernels failed on a GPU: `cuda/finish`."


def test_the_readme_holds_what_the_results_say():
    text = readme.README.read_text()
    assert readme.generated(text) == text, "run: make readme"


def test_committed_results_are_of_this_schema():
    for path in sorted(readme.RESULTS.glob("[cg]pu-*.json")):
        report.validate(json.loads(path.read_text()))


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
