"""How kernels are started: element types, matrix precision, the one place that launches."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..dtypes import float32_precision
from . import support as guard
from .tile_math import log1p

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class Launch(NamedTuple):
    kernel: object
    programs: int
    arguments: tuple
    constants: dict
    num_warps: int
    num_stages: int


_recorder: tuple[list[Launch], bool] | None = None


@contextlib.contextmanager
def recording(run: bool = True):
    """A list to which every launch inside the ``with`` block is added; with ``run=False`` none is started."""
    global _recorder
    previous, launches = _recorder, []
    _recorder = (launches, run)
    try:
        yield launches
    finally:
        _recorder = previous


def accumulation_type(dtype: torch.dtype):
    """The type of sums over elements of this type: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter: decided when they were defined."""
    return not isinstance(log1p, triton.JITFunction)


def precision(dtype: torch.dtype, arch: str) -> str:
    """``tl.dot``'s input_precision: for float32 what torch is asked for (`dtypes.float32_precision`).

    "highest": float32-class (three tf32 products), or plain float32 where that is unsafe (guard.py) or unknown (AMD);
    "high" and "medium": one tf32 product.
    """
    if dtype != torch.float32 or arch.startswith("gfx"):
        return "ieee"
    if float32_precision() != "highest":
        return "tf32"
    return "tf32x3" if guard.register_operands_are_safe(arch) else "ieee"


def launch(
    kernel, programs: int, *arguments, num_warps: int = 4, num_stages: int = 1, **constants
) -> None:
    """Start `programs` instances on the device of the first argument, on its current stream. No host synchronisation.

    Fusing of multiplications and additions is pinned to what the source says: its default differs between Triton versions.
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
