"""The CUDA backend: kernels of csrc/cuda, compiled into a library of operators.

This file loads the library, says where the backend serves, and has the functions that every backend
has. `similarity.py`, `sigmoid.py` and `force.py` start the kernels of a family. The order in which
those of the first two run is in backends/tiled, shared with Triton. `_tiles.py` has the loaded
operators and what else the first two share. ops/ has the contracts.
"""

from __future__ import annotations

import functools
import importlib
import runpy
from pathlib import Path

import torch
from torch import Tensor

from ...problem import (
    Forward,
    Gradients,
    Needs,
    Problem,
    Saved,
    SigmoidForward,
    SigmoidProblem,
    SigmoidSaved,
    Upstream,
    Wanted,
)
from .._verified import verified
from ..tiled import sigmoid as tiled_sigmoid
from ..tiled import similarity as tiled_similarity
from . import force as cuda_force
from . import sigmoid, similarity
from ._tiles import LIBRARIES

OLDER = "the CUDA library is older than this package: build it anew (FUSED_CONTRASTIVE_BUILD=cuda)"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@functools.cache
def _load() -> str | None:
    """Load the library. Where there is none that works here, return the reason."""
    try:
        versions = importlib.import_module("fused_contrastive._C_cuda").versions
    except ImportError as error:
        return f"the CUDA library is not built (FUSED_CONTRASTIVE_BUILD=cuda): {error}"
    except AttributeError:
        return OLDER
    reason = driver_refusal(*versions())
    if reason is None and not hasattr(torch.ops.fused_contrastive_cuda, "sigmoid_weight"):
        reason = OLDER
    if reason is None:
        LIBRARIES["cuda"] = torch.ops.fused_contrastive_cuda
    return reason


def driver_refusal(driver: int, runtime: int) -> str | None:
    """Why a driver cannot serve the CUDA runtime in the library, whose major version it must know.

    Versions are 1000 major + 10 minor. A driver of 0 means that there is none.
    """
    if driver == 0 or driver // 1000 >= runtime // 1000:
        return None
    serves, built = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, runtime))
    return (
        f"the NVIDIA driver serves CUDA {serves}, the library was built with CUDA {built}: "
        f"update the driver, or build with a toolkit of CUDA {driver // 1000}"
    )


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve this device and matrix dtype, or None when it can."""
    if dtype not in DTYPES:
        return f"{dtype} is none of float16, bfloat16, float32, float64"
    if device.type in LIBRARIES and device.type != "cuda":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"no kernels for {device.type} tensors"
    reason = _load()
    if reason is None and torch.cuda.get_device_capability(device) < (8, 0):
        reason = "needs compute capability 8.0 or newer"
    return reason


def status() -> str:
    """The line that `fused_contrastive.backends()` shows for this backend."""
    reason = _load()
    if reason is not None:
        return f"unavailable: {reason}"
    where = (
        "available: GPU"
        if torch.cuda.is_available()
        else "unavailable: the library is loaded, but there is no GPU here"
    )
    return f"{where}; {verified(_source_hashes())}"


def _source_hashes() -> dict[str, str]:
    """The hash of every kernel source by its name. Outside a checkout there are none."""
    path = Path(__file__).resolve().parents[3] / "csrc/cuda/build.py"
    if not path.exists():
        return {}
    return runpy.run_path(str(path))["kernel_hashes"]()


def similarity_forward(problem: Problem, wanted: Wanted) -> Forward:
    """The forward pass of the similarity family; ops/similarity.py is its contract."""
    return tiled_similarity.forward(similarity, problem, wanted)


def similarity_backward(
    upstream: Upstream, problem: Problem, saved: Saved, need: Needs
) -> Gradients:
    """The backward pass of the similarity family; ops/similarity.py is its contract."""
    return tiled_similarity.backward(similarity, upstream, problem, saved, need)


def sigmoid_forward(problem: SigmoidProblem, extrema: bool) -> SigmoidForward:
    """The forward pass of the sigmoid family; ops/sigmoid.py is its contract."""
    return tiled_sigmoid.forward(sigmoid, problem, extrema)


def sigmoid_backward(
    g_rows: Tensor,  # [G, M]
    problem: SigmoidProblem,
    saved: SigmoidSaved,
    need: Needs,
) -> Gradients:
    """The backward pass of the sigmoid family; ops/sigmoid.py is its contract."""
    return tiled_sigmoid.backward(sigmoid, g_rows, problem, saved, need)


def force_forward(problem):
    """The force on each row, and what the backward op reads; ops/force.py has the contract."""
    return cuda_force.force_forward(LIBRARIES[problem.x.device.type], problem)


def distance_sums(x, weight, rows, clip):
    """Sums of distances; ops/force.py has the contract."""
    return cuda_force.distance_sums(LIBRARIES[x.device.type], x, weight, rows, clip)


def distance_gradient(g, x):
    """The gradient of the sum of all distances; ops/force.py has the contract."""
    return cuda_force.distance_gradient(LIBRARIES[x.device.type], g, x)
