"""Shapes that the fake implementations of several ops share.

A fake tells torch.compile and torch.export the shapes and dtypes of an op's outputs without running
it. An absent output is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import accumulation_dtype


def prepared(
    a: Tensor,  # [G, M, D]
    b: Tensor | None,  # [G, N, D]
    normalize: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """``a_hat [G, M, D]``, ``b_hat [G, N, D]``, ``a_inv [G, M]`` and ``b_inv [G, N]``."""
    accumulate = accumulation_dtype(dtype)

    def hat(x: Tensor | None) -> Tensor:
        if x is None or not (normalize or x.dtype != dtype):
            return a.new_empty((0,), dtype=dtype)
        return a.new_empty(x.shape, dtype=dtype)

    def inverse(x: Tensor | None) -> Tensor:
        if x is None or not normalize:
            return a.new_empty((0,), dtype=accumulate)
        return a.new_empty(x.shape[:2], dtype=accumulate)

    return hat(a), hat(b), inverse(a), inverse(b)


def gradients(
    a: Tensor,  # [G, M, D]
    b: Tensor | None,  # [G, N, D]
    scale: Tensor,  # []
    need: tuple[bool, bool, bool, bool],
    bias: tuple[int, int],
) -> tuple[Tensor, ...]:
    """The gradients of a, b, scale and a bias of shape `bias`, each empty unless needed."""
    need_a, need_b, need_scale, need_bias = need
    columns = a if b is None else b
    return (
        a.new_empty(a.shape if need_a else (0,)),
        a.new_empty(columns.shape if need_b else (0,), dtype=columns.dtype),
        scale.new_empty(() if need_scale else (0,)),
        scale.new_empty(bias if need_bias else (0,)),
    )
