"""Derivatives of sums over equal keys and of the rows of all ranks. Both are linear.

Every function here stands for the sum over all ranks, as in autograd/over_ranks.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.groups import Ranks
from ..ops import keyed_sums as ops
from ..ops import rows_of_all_ranks as gathering
from ..ops._library import LIBRARY
from ._formulas import refuse_transforms
from .over_ranks import described


def _remember_sums(ctx, inputs, output):
    x, key, of, _, _, ctx.ranks = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(key, of, output[1])


def _sums_backward(ctx, g, _):
    key, of, sizes = ctx.saved_tensors
    found, _ = ops.keyed_sums_over_ranks(g, of, key, sizes.flip(1), ctx.dtype, ctx.ranks)
    return found, *[None] * 5


def _remember_rows(ctx, inputs, output):
    x, _, ctx.ranks = inputs
    ctx.save_for_backward(x, output[1])


def _rows_backward(ctx, g, _):
    return gathering.sum_of_own_rows(g.contiguous(), *ctx.saved_tensors, ctx.ranks), None, None


for _name, _backward, _remember in (
    ("keyed_sums_over_ranks", _sums_backward, _remember_sums),
    ("rows_of_all_ranks", _rows_backward, _remember_rows),
):
    torch.library.register_autograd(
        f"fused_contrastive::{_name}", _backward, setup_context=_remember, lib=LIBRARY
    )


def keyed_sums(
    x: Tensor,  # [n, C]
    key: Tensor,  # [n]
    of: Tensor,  # [m]
    ranks: Ranks | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """For each key in `of`, the sum ``[m, C]`` of all ranks' rows with that key.

    It is in `dtype`, or in that of x. Where the device has float64, the sums are accumulated in it.
    """
    dtype, key, of = x.dtype if dtype is None else dtype, key.long(), of.long()
    if ranks is None:
        return ops.keyed_sums(ops.widened(x), key, of).to(dtype)
    refuse_transforms(x)
    return ops.keyed_sums_over_ranks(x, key, of, None, dtype, described(ranks, x))[0]


def rows_of_all_ranks(x: Tensor, total: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The rows ``[total, D]`` of all ranks' ``x [n, D]``, and the ranks' sizes ``[W, 2]``."""
    refuse_transforms(x)
    return gathering.rows_of_all_ranks(x, total, described(ranks, x))
