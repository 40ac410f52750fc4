"""How kernels are started: element types, matrix precision, the one place that launches."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

from . import guard

TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulation_type(dtype: torch.dtype):
    return TYPES[accumulation_dtype(dtype)]


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return not isinstance(multiply_probe, triton.JITFunction)


@triton.jit
def multiply_probe():
    """Never launched: its type says whether the interpreter was chosen when Triton was imported."""


def precision(dtype: torch.dtype, arch: str) -> str:
    """``tl.dot``'s input_precision: for float32 what `torch.set_float32_matmul_precision` asks for.

    "highest": float32-class (three tf32 products), or plain float32 where that is unsafe (guard.py) or unknown (AMD);
    "high" and "medium": one tf32 product.
    """
    if dtype != torch.float32 or arch.startswith("gfx"):
        return "ieee"
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "tf32x3" if guard.register_operands_are_safe(arch) else "ieee"


def launch(kernel, programs: int, *arguments, num_warps: int = 4, num_stages: int = 1, **constants) -> None:
    """Start `programs` instances on the device of the first argument, on its current stream. No host synchronisation."""
    device = arguments[0].device
    guard_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard_device:
        kernel[(programs,)](
            *arguments, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=False, **constants
        )
