"""Results become rows, and the README's tables are made of these rows."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from bench import environment, readme, report, rows
from bench.losses import LOSSES, Size


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
    # There is no eager run in this dtype.
    assert measured["cpu", "bf16", "full"]["x_eager"] is None
    assert measured["eager", "fp32", "forward"]["flops"] == 2 * 10**8
    assert measured["compile", "fp32", "forward"]["x_eager"] == pytest.approx(2)


def test_validate_names_what_is_missing():
    result = report.new_result("cpu", "", {})
    result["rows"] = synthetic_rows()
    report.validate(result)
    del result["rows"][0]["gemm_fraction"]
    with pytest.raises(ValueError, match="gemm_fraction"):
        report.validate(result)
    with pytest.raises(ValueError, match="missing"):
        report.validate({"schema": 1, "rows": []})


@functools.cache
def this_machine() -> dict:
    """Returns the description of this machine, which takes a second to make."""
    return environment.describe(torch.device("cpu"))


def result_file(folder, name, kind, day, **extra):
    described = {**this_machine(), "gpu": extra.pop("gpu", None)}
    result = report.new_result(kind, f"python -m bench {name}", described)
    result.update(rows=synthetic_rows(), date=day, **extra)
    (folder / f"{name}.json").write_text(json.dumps(result))
    return result


def test_tables_come_from_the_newest_result(tmp_path):
    page = tmp_path / "page.md"
    text = "a\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nb\n"
    for kind in ("gpu", "peers", "losses", "kernels", "force", "accuracy"):
        text += f"<!-- bench:{kind} -->\n<!-- /bench:{kind} -->\n"
    page.write_text(text)
    unmeasured = readme.generated(page, tmp_path)
    assert "Nothing has been measured on a GPU yet." in unmeasured
    assert "Nothing has been measured on a CPU yet." in unmeasured
    result_file(tmp_path, "cpu-one-2025-01-01", "cpu", "2025-01-01")
    result_file(tmp_path, "cpu-one-2025-03-01", "cpu", "2025-03-01")
    new = readme.generated(page, tmp_path)
    assert "old" not in new
    assert "(../bench/results/cpu-one-2025-03-01.json" in new
    assert "cpu-one-2025-01-01" not in new
    lines = [" ".join(line.split()) for line in new.splitlines()]
    assert "| 1000 | 100 | fp32 | 4000 | 2000 | 400 | 10.0 | 5.00 | 1.00 | - | - |" in lines
    page.write_text(new)
    assert readme.generated(page, tmp_path) == new
    assert new.startswith("a\n<!-- bench:cpu -->\n|") and new.endswith(
        "not yet measured\n<!-- /bench:accuracy -->\n"
    )
    with pytest.raises(ValueError, match="bench:cpu"):
        readme.replace("no markers", "cpu", "")


def test_every_other_loss_has_sizes_and_a_row_of_its_newest_result(tmp_path):
    assert all(loss.sizes for loss in LOSSES.values())
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


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_the_pages_hold_what_the_results_say(page):
    assert readme.generated(page) == page.read_text(), "run: make readme"


def test_every_table_is_in_one_page():
    text = "".join(page.read_text() for page in readme.PAGES)
    assert all(text.count(f"<!-- bench:{kind} -->") == 1 for kind in readme.TABLES)


def test_committed_results_are_of_this_schema():
    for path in sorted(readme.RESULTS.glob("[cg]pu-*.json")):
        report.validate(json.loads(path.read_text()))
