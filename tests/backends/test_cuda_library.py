"""The CUDA library is compiled by nvcc against the stable ABI and loads without a GPU.

A CPU-only torch loads it, too.

Compiling everything takes about 900 seconds of one core. So the tests build the library with three
of its 21 kernel sources, for one architecture. Tables of null pointers stand for the other sources.
If FUSED_CONTRASTIVE_BUILD=cuda was asked for, the library that it made is checked, too.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_contrastive
from bench.gates import cuda as compile_gate_cuda
from bench.gates.cuda import build

OPERATORS = (
    "prepare",
    "pair_reduce",
    "finish_forward",
    "fused_rows",
    "finish_weighted",
    "terms",
    "pair_weight",
    "finish_backward",
    "force_group",
    "force_group_gradient",
    "force_distances",
    "force_log_sums",
    "force_affinities",
    "force_weights",
    "force_inverses",
    "force_merge",
    "force_norms",
    "sigmoid_reduce",
    "sigmoid_finish",
    "sigmoid_terms",
    "sigmoid_weight",
)
TABLES = ("BF16", "F16", "TF32", "TF32X3", "FMA", "F64")
PAIR_TABLES = ("BF16_SM90", "F16_SM90")
FORCE_TABLES = ("BF16", "F16", "F32", "F64")
needs_nvcc = pytest.mark.skipif(build.nvcc() is None, reason="no nvcc here (CUDA_HOME or the path)")
LOAD = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("fused_contrastive._C_cuda", sys.argv[1])
library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(library)
for name in sys.argv[2:]:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"fused_contrastive_cuda::{name}", "CUDA"), name
from fused_contrastive.backends import cuda
print(library.SOURCES, *library.versions() if hasattr(library, "versions") else ())
"""


def loaded(library: Path) -> list[str]:
    """Return the hash of a library's sources, and the CUDA versions of its driver and runtime.

    The library says what it is made of. It is loaded in a process of its own, which checks its
    operators.
    """
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(library), *OPERATORS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def check_symbols(library: Path) -> None:
    """Assert that the library uses only the stable C functions of torch.

    Torch's C++ interface changes from release to release.
    """
    if shutil.which("nm") is None:
        return
    printed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    )
    names = re.findall(r"\b[Uw] ([\w.]+)", printed.stdout)
    assert "aoti_torch_get_current_cuda_stream" in names and any(
        name.startswith("torch_") for name in names
    )
    assert not [name for name in names if re.match(r"_ZN?K?(St)?\d*(2at|3c10|5torch)", name)]
    assert not [name for name in names if name.startswith("cuda")], (
        "the CUDA runtime is linked statically"
    )


def test_the_compile_gate_has_passed():
    """Every kernel source has passed the gate as it is now, for every architecture.

    If this fails, run ``python -m bench.gates.cuda``.
    """
    record = json.loads(compile_gate_cuda.RECORD.read_text())
    places = {
        f"{source.stem} sm_{arch}": source
        for source in build.sources()
        for arch in build.architectures(source)
    }
    assert set(record) == set(places)
    for place, source in places.items():
        arch = place.rpartition("sm_")[2]
        assert record[place]["hash"] == build.source_hash(source), place
        assert record[place]["kernels"]
        for row in record[place]["kernels"]:
            assert not compile_gate_cuda.objections(row, arch), (place, row["kernel"])


@needs_nvcc
@pytest.mark.nightly
def test_builds_and_loads_without_a_gpu(tmp_path):
    tables = tmp_path / "tables.cu"
    lines = [f"const TileKernels {name}_KERNELS{{}};" for name in TABLES]
    lines += [f"const PairKernels {name}_KERNELS{{}};" for name in PAIR_TABLES]
    lines += [f"const ForceKernels {name}_FORCE{{}};" for name in FORCE_TABLES]
    lines += [f"const SigmoidKernels {name}_SIGMOID{{}};" for name in (*TABLES, *PAIR_TABLES)]
    headers = [f'#include "{build.HERE}/{name}.h"' for name in ("launch", "force", "sigmoid")]
    tables.write_text("\n".join([*headers, "namespace fused_contrastive {", *lines, "}"]))
    library = tmp_path / "_C_cuda.abi3.so"
    folder = Path(build.HERE).parents[1] / "build/cuda_library_test"
    kernels = [
        *(build.HERE / f"{name}.cu" for name in ("prepare", "finish", "sigmoid_finish")),
        tables,
    ]
    build.build(library, folder, jobs=2, names=("80",), chosen=kernels)
    sources, driver, runtime = loaded(library)
    assert sources == build.library_hash()
    assert int(driver) >= 0 and int(runtime) // 1000 == int(build.release().partition(".")[0])
    check_symbols(library)


def test_the_installed_library():
    spec = importlib.util.find_spec("fused_contrastive._C_cuda")
    if spec is None:
        pytest.skip(
            "not built: FUSED_CONTRASTIVE_BUILD=cuda pip install takes about 200 s of one core"
        )
    library = Path(spec.origin)
    made_of = loaded(library)[0]
    check_symbols(library)
    if made_of != build.library_hash():
        pytest.skip(
            "built from other sources than these: build it anew with "
            "FUSED_CONTRASTIVE_BUILD=cuda pip install"
        )
    if not torch.cuda.is_available():
        assert (
            "the library is loaded, but there is no GPU here"
            in fused_contrastive.backends()["cuda"]
        )
    if (cuobjdump := shutil.which("cuobjdump")) is not None:
        printed = subprocess.run(
            [cuobjdump, "-lelf", "-lptx", str(library)], capture_output=True, text=True
        ).stdout
        assert set(re.findall(r"sm_(\w+)\.cubin", printed)) <= set(build.ARCHITECTURES)
        assert re.search(r"sm_\w+\.ptx", printed)
