"""How kernels are started, which happens in one place: `launch`."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .tile_math import log1p


class Launch(NamedTuple):
    """One launch, as `recording` notes it."""

    kernel: object
    programs: int
    arguments: tuple
    constants: dict
    num_warps: int
    num_stages: int


_recorder: tuple[list[Launch], bool] | None = None


@contextlib.contextmanager
def recording(run: bool = True):
    """A list to which every launch inside the ``with`` block is added.

    With ``run=False`` no kernel is started.
    """
    global _recorder
    launches: list = []
    previous = _recorder
    _recorder = (launches, run)
    try:
        yield launches
    finally:
        _recorder = previous


def accumulation_type(dtype: torch.dtype):
    """The Triton type of sums over elements of this type: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, which is decided when they are defined."""
    return not isinstance(log1p, triton.JITFunction)


def launch(
    kernel, programs: int, *arguments, num_warps: int = 4, num_stages: int = 1, **constants
) -> None:
    """Start `programs` instances of a kernel, on the current stream of the first argument's device.

    The host does not wait. Multiplications and additions are fused where the source says so and
    nowhere else, because the default differs between Triton versions.
    """
    if _recorder is not None:
        launches, run = _recorder
        launches.append(Launch(kernel, programs, arguments, constants, num_warps, num_stages))
        if not run:
            return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](
            *arguments,
            num_warps=num_warps,
            num_stages=num_stages,
            enable_fp_fusion=False,
            **constants,
        )
