"""``make gpu`` builds the right library, and measures and derives the right rates.

This needs no GPU.
"""

from __future__ import annotations

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import kernel_table
from bench.gpu import library as gpu_library


def rates():
    return {"gemm_bf16_tflops": 700.0, "gemm_fp32_tflops": 50.0, "copy_gb_per_s": 4000.0}


def test_the_library_is_taken_or_built(tmp_path, monkeypatch):
    wanted, library = gpu_library.build.library_hash(), tmp_path / "_C_cuda.abi3.so"
    everything = gpu_library.build.ARCHITECTURES
    present, built = [""], []

    def child(command, limit, extra, poll):
        assert command[:2] == ["-m", "bench.gpu.library"] and limit == 100
        built.append(tuple(command[3:]))
        monkeypatch.setattr(
            gpu_library.build, "build", lambda path, folder, names: path.write_bytes(b"ELF")
        )
        present[0] = wanted
        return gpu_library.main(*command[2:])

    monkeypatch.setattr(gpu_library, "made_of", lambda: present[0])
    monkeypatch.setattr(gpu_library.build, "nvcc", lambda: None)
    assert gpu_library.ready((9, 0), 100, library) == "unavailable: none here, and there is no nvcc"
    monkeypatch.setattr(gpu_library.build, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(gpu_library, "child", child)
    assert gpu_library.ready((9, 0), 100, library).startswith("built for sm_90a in 0 s")
    assert gpu_library.ready((9, 0), 100, library) == f"prebuilt, sources {wanted}"
    assert built == [("90a",)] and gpu_library.recorded(library) == ("90a",)
    assert gpu_library.ready((8, 0), 100, library).startswith("built for sm_80, sm_90a"), (
        "of one architecture, and another's"
    )
    assert gpu_library.ready((9, 0), 100, library) == f"prebuilt, sources {wanted}"
    assert gpu_library.ready((8, 9), 100, library).startswith(
        "built for sm_80, sm_86, sm_90a, sm_100, sm_120 in"
    )
    present[0] = "other"
    assert gpu_library.ready((9, 0), 100, library).startswith("built for"), "of other sources"
    assert built[1:] == [("80", "90a"), everything, everything], (
        "an architecture that is there stays"
    )
    library.write_bytes(b"ELF of setup.py, which records nothing")
    assert gpu_library.ready((10, 0), 100, library) == f"prebuilt, sources {wanted}"
    for status, said in ((None, "out of time"), (1, "exit 1")):
        present[0] = "other"
        monkeypatch.setattr(gpu_library, "child", lambda *a, status=status: status)
        assert gpu_library.ready((9, 0), 100, library) == f"unavailable: did not build ({said})"
        assert not list(tmp_path.iterdir()), "the package would load it"


def test_bare_rates():
    measured = gpu.rates(torch.device("cpu"), 64, 1 << 16, 0.01)
    assert set(measured) == {
        "gemm_bf16_tflops",
        "gemm_tf32_tflops",
        "gemm_fp32_tflops",
        "copy_gb_per_s",
    }


def test_kernels_alone_against_bare_rates():
    kernels = [
        ("void fused_contrastive::(anonymous namespace)::prepare<bf16>(PrepareParams)", 10.0),
        ("void fused_contrastive::pair_reduce<Half<bf16>, false>(ReduceParams)", 100.0),
        ("void fused_contrastive::force_group<float, 4>(ForceParams)", 5.0),
        ("nvjet_tst_256x128", 300.0),
        ("elementwise_kernel", 1.0),
    ]
    place = {
        "loss": "nt_xent",
        "N": 10000,
        "K": 0,
        "D": 250,
        "dtype": "bf16",
        "pass": "full",
        "backend": "cuda",
    }
    result = {
        "rows": [{**place, "kernels": kernels}, {**place, "backend": "eager", "kernels": kernels}],
        "rates": rates(),
    }
    found = {e["kernel"]: e for e in kernel_table.entries(result)}
    assert set(found) == {"prepare", "pair_reduce", "force_group", "product", "other"}
    # The kernel does N^2 D flops in 100 us.
    assert found["pair_reduce"]["rate"] == pytest.approx(250.0)
    assert found["pair_reduce"]["of"] == pytest.approx(250 / 700)
    assert found["prepare"]["rate"] == pytest.approx(1000.0)
    force = {
        "loss": "contrastive_force",
        "N": 500,
        "K": 10,
        "D": 100,
        "dtype": "fp32",
        "pass": "full",
    }
    launched = [
        ("void fused_contrastive::force_weights<float>(ForceParams)", 100.0),
        ("ampere_sgemm_128x64", 100.0),
    ]
    both = [{**force, "backend": backend, "kernels": launched} for backend in ("cuda", "triton")]
    found = {
        (e["backend"], e["kernel"]): e
        for e in kernel_table.entries({"rows": both, "rates": rates()})
    }
    # Only half of the points are rows: 5000 rows meet the 1000 points of their group.
    cells = 10 * 1000**2 * 100
    assert found["cuda", "force_weights"]["rate"] == pytest.approx(3 * cells / 2 / 100e-6 / 1e12)
    assert found["cuda", "product"]["of"] == pytest.approx(3 * cells / 100e-6 / 1e12 / 50)
    assert found["triton", "force_weights"]["rate"] is None, "other launches than those counted"
    assert (
        "250 TFLOP/s" in kernel_table.markdown(result)
        and "no" not in kernel_table.markdown(result)[:2]
    )
    assert kernel_table.markdown({"rows": [], "rates": {}}) == "No profiled kernels."
