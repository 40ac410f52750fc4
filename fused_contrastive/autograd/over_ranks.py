"""The first derivatives of what is computed over the ranks of a process group.

Every function here stands for the sum over all ranks: a rank's inputs receive the gradient of the
sum of what all ranks make of its results. Derivatives are of first order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import dispatch
from ..distributed.groups import Ranks
from ..dtypes import matrix_dtype
from ..ops import collectives
from ..ops import sigmoid_over_ranks as sigmoid_ops
from ..ops import similarity_over_ranks as similarity_ops
from ..ops._library import LIBRARY
from ..problem import NO_SELF
from ._formulas import only, refuse_transforms
from ._groups import group, group_vector, ungroup


def register(op: str, backward, setup_context) -> None:
    """Give an op and its backward op their formulas; the second raises an error."""

    def first(ctx, *upstream):
        return backward(ctx, *upstream)

    def second(ctx, *upstream):
        raise NotImplementedError(
            "second derivatives of a loss over the ranks of a group are not available: "
            "compute it without group= where you need them"
        )

    name = f"fused_contrastive::{op}"
    torch.library.register_autograd(name, first, setup_context=setup_context, lib=LIBRARY)
    torch.library.register_autograd(f"{name}_backward", second, lib=LIBRARY)


def remember_similarity(ctx, inputs, output):
    """Keep what the backward op reads."""
    *operands, kind, offset, stride, positive, normalize = inputs[:11]
    *_, dtype, backend, ranks = inputs
    rows, cols, pos, _loss, _row_max, _col_max, *prepared, sizes = output
    ctx.set_materialize_grads(False)
    for i, hat in enumerate(prepared[:2]):
        if hat.dim() == 3 and hat.dtype == rows.dtype:
            # The backward pass reads the prepared rows, and of these only shape and dtype.
            operands[i] = operands[i].new_empty(()).expand(operands[i].shape)
    ctx.save_for_backward(*operands, rows, cols, pos, *prepared, sizes)
    ctx.options = kind, offset, stride, positive, normalize, dtype
    ctx.where = backend, ranks


def similarity_backward(ctx, g_rows, g_cols, _pos, g_loss, *_):
    """The gradients of ``similarity_over_ranks``. Every rank exchanges, whatever it has to give."""
    saved = ctx.saved_tensors
    rows, cols, positive = saved[6], saved[7], ctx.options[3]
    if positive >= 0:
        g_rows, g_cols = g_loss, None
    else:
        # The second half of a log-sum-exp in two parts is a constant.
        g_rows, g_cols = (None if g is None else g[0] for g in (g_rows, g_cols))
    g_rows = torch.zeros_like(rows[0]) if g_rows is None else g_rows.contiguous()
    if positive >= 0 or cols.dim() == 1:
        g_cols = cols.new_empty(0)
    else:
        g_cols = torch.zeros_like(cols[0]) if g_cols is None else g_cols.contiguous()
    needed = ctx.needs_input_grad[:4]
    found = similarity_ops.similarity_over_ranks_backward(
        g_rows, g_cols, *saved, *ctx.options, *needed, *ctx.where
    )
    return *only(needed, found), *[None] * 12


register("similarity_over_ranks", similarity_backward, remember_similarity)


def remember_sigmoid(ctx, inputs, output):
    """Keep what the backward op reads."""
    *operands, kind, offset, stride, positive, sign, _extrema, dtype, backend, ranks = inputs
    _rows, pos, _row_max, sizes = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*operands, pos, sizes)
    ctx.options = kind, offset, stride, positive, sign, dtype
    ctx.where = backend, ranks


def sigmoid_backward(ctx, g_rows, *_):
    """The gradients of ``sigmoid_over_ranks``."""
    saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:4]
    g_rows = saved[2].new_zeros(saved[0].shape[:2]) if g_rows is None else g_rows.contiguous()
    found = sigmoid_ops.sigmoid_over_ranks_backward(
        g_rows, *saved, *ctx.options, *needed, *ctx.where
    )
    return *only(needed, found), *[None] * 11


register("sigmoid_over_ranks", sigmoid_backward, remember_sigmoid)


def remember_ranks(ctx, inputs, output):
    """Keep the ranks."""
    ctx.ranks = inputs[-1]


def sum_backward(ctx, g):
    """A rank's tensor is in the sum of every rank."""
    return sum_over_ranks(g, ctx.ranks), None


torch.library.register_autograd(
    "fused_contrastive::sum_over_ranks", sum_backward, setup_context=remember_ranks, lib=LIBRARY
)


def mean_backward(ctx, g):
    """The mean of the ranks' gradients."""
    return sum_over_ranks(g, ctx.ranks) / Ranks.decode(ctx.ranks).size, None


torch.library.register_autograd(
    "fused_contrastive::averaged_gradient", mean_backward, setup_context=remember_ranks, lib=LIBRARY
)


def sum_over_ranks(x: Tensor, ranks: str) -> Tensor:
    """The sum of the ranks' x, which have one shape."""
    return collectives.sum_over_ranks(x, ranks)


def averaged_gradient(x: Tensor, ranks: str) -> Tensor:
    """x itself. Its gradient is the mean of the ranks' gradients."""
    return collectives.averaged_gradient(x, ranks)


def described(ranks: Ranks, *tensors: Tensor | None) -> str:
    """`Ranks.encode`, with what the ranks' backward passes exchange as a part of the call."""
    names = zip(("rows", "columns", "scale", "bias"), tensors, strict=False)
    wanted = [name for name, x in names if x is not None and x.requires_grad]
    wanted = ", ".join(wanted) if wanted and torch.is_grad_enabled() else "nothing"
    return ranks._replace(call=f"{ranks.call} with gradients of {wanted}").encode()


class Result(NamedTuple):
    """What `similarity` returns, in the accumulation dtype. What was not asked for is None.

    With a positive that is the loss and the logit of each row's positive, else the log-sum-exps.
    With a positive and the largest logits it has the log-sum-exps as constants, too.
    """

    rows: Tensor | None  # [..., M]
    cols: Tensor | None  # [..., N]
    loss: Tensor | None = None  # [..., M]
    pos: Tensor | None = None  # [..., M]
    row_max: Tensor | None = None  # [..., M]
    col_max: Tensor | None = None  # [..., N]

    def with_constant_sums(self) -> Result:
        """The result, with log-sum-exps that have no gradient: they are part of the loss."""
        rows, cols = (None if x is None else x.detach() for x in (self.rows, self.cols))
        return self._replace(rows=rows, cols=cols)


def similarity_over_ranks(
    a: Tensor,  # [..., M, D]
    b: Tensor | None,  # [..., N, D]; None: a
    scale: Tensor,  # []
    ranks: Ranks,
    *,
    bias: Tensor | None = None,  # [..., N]
    key_a: Tensor | None = None,  # [..., M]
    key_b: Tensor | None = None,  # [..., N]
    kind: str = "all",
    offset: int = 0,
    stride: int = 1,
    positive: int = -1,
    normalize: bool = False,
    columns: bool = False,
    extrema: bool = False,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Result:
    """`similarity` of this rank's rows with the columns of all ranks. It has its arguments."""
    refuse_transforms(a, b, scale, bias)
    dtype = matrix_dtype(a) if dtype is None else dtype
    name = dispatch.select(backend, a.device, dtype)
    lead, M = a.shape[:-2], a.shape[-2]
    if b is not None and b.dtype != a.dtype and not normalize:
        # Inside autocast the dtypes may differ.
        a, b = a.to(dtype), b.to(dtype)
    both = columns and b is None
    if b is None and (bias is not None or offset not in (0, NO_SELF)):
        # Logits or candidates that are not symmetric need two sets.
        b, key_b, both = a.clone(), key_a, False
    N = M if b is None else b.shape[-2]
    rows, cols, pos, loss, row_max, col_max, *_ = similarity_ops.similarity_over_ranks(
        group(a),
        group(b),
        scale,
        group_vector(bias, lead, N, scale.dtype),
        group_vector(key_a, lead, M, torch.int64),
        None if b is None else group_vector(key_b, lead, N, torch.int64),
        kind,
        offset,
        stride,
        positive,
        normalize,
        columns and not both,
        extrema,
        dtype,
        name,
        described(ranks, a, b, scale, bias),
    )
    if both:
        cols, col_max = rows, row_max
    result = Result(None, None)
    if positive >= 0:
        result = result._replace(loss=ungroup(loss, lead), pos=ungroup(pos, lead).detach())
    if positive < 0 or extrema:
        cols_lse = ungroup(cols[0], lead) if columns else None
        result = result._replace(rows=ungroup(rows[0], lead), cols=cols_lse)
    if not extrema:
        return result
    col_max = ungroup(col_max, lead).detach() if columns else None
    result = result._replace(row_max=ungroup(row_max, lead).detach(), col_max=col_max)
    return result if positive < 0 else result.with_constant_sums()


def sigmoid_over_ranks(
    a: Tensor,  # [..., M, D]
    b: Tensor | None,  # [..., N, D]; None: a
    scale: Tensor,  # []
    row_bias: Tensor | None,  # broadcastable to [..., M]
    ranks: Ranks,
    *,
    sign: int = 1,
    key_a: Tensor | None = None,  # [..., M]
    key_b: Tensor | None = None,  # [..., N]
    kind: str = "all",
    offset: int = 0,
    stride: int = 1,
    positive: int = -1,
    extrema: bool = False,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`sigmoid_sum` over all ranks: the sums, the positives' logits and the largest ones.

    Each is ``[..., M]``. What was not asked for is None.
    """
    refuse_transforms(a, b, scale, row_bias)
    dtype = matrix_dtype(a) if dtype is None else dtype
    name = dispatch.select(backend, a.device, dtype)
    lead, M = a.shape[:-2], a.shape[-2]
    if b is not None and b.dtype != a.dtype:
        # Inside autocast the dtypes may differ.
        a, b = a.to(dtype), b.to(dtype)
    N = M if b is None else b.shape[-2]
    if row_bias is not None:
        row_bias = group_vector(row_bias, lead, M, scale.dtype)
    rows, pos, row_max, _ = sigmoid_ops.sigmoid_over_ranks(
        group(a),
        group(b),
        scale,
        row_bias,
        group_vector(key_a, lead, M, torch.int64),
        None if b is None else group_vector(key_b, lead, N, torch.int64),
        kind,
        offset,
        stride,
        positive,
        sign,
        extrema,
        dtype,
        name,
        described(ranks, a, b, scale, row_bias),
    )
    return (
        ungroup(rows, lead),
        ungroup(pos, lead).detach() if positive >= 0 else None,
        ungroup(row_max, lead) if extrema else None,
    )
