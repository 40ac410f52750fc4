"""Numbers and 0-d tensors (temperatures, scales, biases) as the ops take them."""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import accumulation_dtype


def as_scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or 0-d tensor as a 0-d tensor in the accumulation dtype and on the device of `like`.

    Gradients flow back to a tensor.

    Args:
        value: a number, or a tensor of shape ``[]``.
        like: the embeddings, of any shape.
    """
    dtype = accumulation_dtype(like.dtype)
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=dtype)
    return torch.full((), value, dtype=dtype, device=like.device)


def inverse_scale(temperature: float | Tensor, like: Tensor) -> Tensor:
    """``1 / temperature`` as `as_scalar` gives it.

    Args:
        temperature: a number, or a tensor of shape ``[]``.
        like: the embeddings, of any shape.
    """
    if isinstance(temperature, Tensor):
        return as_scalar(temperature, like).reciprocal()
    if not isinstance(temperature, (int, float)):
        # NumPy's float32, for example, would be divided in its own precision.
        temperature = float(temperature)
    return as_scalar(1.0 / temperature, like)
