"""Which dtype a call computes in.

Here are the accumulation dtype, the matrix dtype, autocast and torch's float32 precision.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-sum-exps: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def matrix_dtype(x: Tensor) -> torch.dtype:
    """The dtype that the products of x are computed in.

    Inside autocast it is the autocast dtype, except that float64 stays float64. Outside it is the
    dtype of x.

    Args:
        x: a tensor of any shape.
    """
    if in_autocast(x.device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def float32_precision() -> str:
    """The precision of float32 products on GPUs that torch is asked for.

    It is "highest", "high" or "medium", and is set by `torch.set_float32_matmul_precision` or by
    ``torch.backends.cuda.matmul.fp32_precision``.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        # torch refuses to report through one of the two interfaces what was set through the other.
        precision: Any = torch.backends.cuda.matmul.fp32_precision
        return {"tf32": "high", "bf16": "medium"}.get(precision, "highest")


def in_autocast(device: torch.device) -> bool:
    """Whether autocast is on for this device. The meta device has no autocast."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def outside_autocast(device: torch.device):
    """A context in which autocast is off for this device."""
    return (
        torch.autocast(device.type, enabled=False)
        if in_autocast(device)
        else contextlib.nullcontext()
    )
