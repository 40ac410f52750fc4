"""The first derivatives of the similarity family and `similarity`, which every loss over it calls.

`similarity` resolves dtype, autocast, groups and backend. It returns the row and column
log-sum-exps, or the loss with one positive, ``softplus(lse - pos)``. The positive never enters that
sum, so the loss is accurate relative to itself (docs/maths.md).
"""

from __future__ import annotations

import torch

from .. import reference
from ..backends import dispatch
from ..distributed.groups import Ranks
from ..dtypes import matrix_dtype
from ..ops import similarity as ops
from ..problem import NO_SELF
from ._formulas import Formula, first_derivative_context, is_plain, only, register_derivatives
from ._groups import group, group_vector, ungroup
from .over_ranks import Result, similarity_over_ranks


class Similarity(Formula):
    """The formula of the forward op (ops/similarity.py).

    ``rows[0]`` and ``cols[0]`` are differentiable, or the loss where there is a positive.
    """

    @staticmethod
    def remember(ctx, inputs, outputs):
        *operands, kind, offset, stride, positive, normalize, columns = inputs[:12]
        *_, dtype, backend = inputs
        rows, cols, pos, loss, row_max, col_max, *prepared = outputs
        constant = (rows, cols) if positive >= 0 else (loss,) if columns else (cols, loss)
        ctx.mark_non_differentiable(*constant, pos, row_max, col_max, *prepared)
        ctx.set_materialize_grads(False)
        saved = (*operands, rows, cols, pos, *prepared)
        ctx.save_for_backward(*saved)
        ctx.options = (kind, offset, stride, positive, normalize, dtype)
        ctx.backend = backend
        return saved

    @staticmethod
    def backward(ctx, g_rows, g_cols, _pos, g_loss, *_):
        saved = ctx.saved_tensors
        rows, cols, positive = saved[6], saved[7], ctx.options[3]
        if positive >= 0:
            g_rows, g_cols = g_loss, None
        else:
            # The second half of a log-sum-exp in two parts is a constant.
            g_rows, g_cols = (
                g[0] if g is not None and g.numel() else None for g in (g_rows, g_cols)
            )
        if g_rows is None:
            g_rows = torch.zeros_like(rows[0])
        if g_cols is None:
            g_cols = nothing_upstream(cols, positive)
        needed = ctx.needs_input_grad[:4]
        with first_derivative_context():
            gradients = ops.similarity_backward(
                g_rows, g_cols, *saved, *ctx.options, *needed, ctx.backend
            )
        return *only(needed, gradients), *[None] * 12

    @staticmethod
    def jvp(ctx, *tangents):
        saved, positive = ctx.saved_tensors, ctx.options[3]
        upstream = (torch.zeros_like(saved[6][0]), nothing_upstream(saved[7], positive))
        needs = (False,) * 4
        d_rows, d_cols, *_ = ops.similarity_second(
            *tangents[:4], *upstream, *saved, *ctx.options, *needs, ctx.backend
        )
        if positive >= 0:
            return None, None, None, d_rows, *[None] * 7
        in_two_parts = (
            torch.stack([d, torch.zeros_like(d)]) if d.numel() else None for d in (d_rows, d_cols)
        )
        return *in_two_parts, *[None] * 9


def nothing_upstream(
    cols: torch.Tensor,  # [2, G, N], or empty
    positive: int,
) -> torch.Tensor:
    """The upstream gradient ``[G, N]`` of the columns where they have none.

    It holds zeros, or is empty where it is never read.
    """
    return cols.new_empty(0) if positive >= 0 or not cols.numel() else torch.zeros_like(cols[0])


DirectSimilarity = register_derivatives(
    ops.similarity_forward, ops.similarity_backward, ops.similarity_second, Similarity
)


def similarity(
    a: torch.Tensor,  # [..., M, D]
    b: torch.Tensor | None,  # [..., N, D]
    scale: torch.Tensor,  # []
    *,
    bias: torch.Tensor | None = None,  # [..., N]
    key_a: torch.Tensor | None = None,  # [..., M]
    key_b: torch.Tensor | None = None,  # [..., N]
    kind: str = "all",
    offset: int = 0,
    stride: int = 1,
    positive: int = -1,
    normalize: bool = False,
    columns: bool = False,
    extrema: bool = False,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    ranks: Ranks | None = None,
) -> Result:
    """Log-sum-exps of the candidates, or the loss with one positive. It takes checked tensors.

    Args:
        a: rows.
        b: columns, whose leading dimensions agree with those of a; None: b is a.
        scale: what multiplies the dot products, as `as_scalar` returns it.
        bias: added to the logits of each column.
        key_a: the keys of the rows, and with one set also of the columns.
        key_b: the keys of the columns.
        kind: which columns are candidates. problem.py describes it with `offset` and `stride`.
        offset: the self of row i is column ``i + offset``.
        stride: the rows of one view.
        positive: the positive of row i is column ``(i + positive) % N``; -1: there is none.
        normalize: divide every row by its norm first.
        columns: whether the columns' log-sum-exps are returned, too.
        extrema: whether the largest logits are returned, too.
        dtype: the dtype that the products read; None: `matrix_dtype` of a.
        backend: a name; None: the default of the device.
        ranks: whose columns are candidates, too (ops/similarity_over_ranks.py).
    """
    if backend is not None:
        dispatch.check_name(backend)
    if ranks is not None:
        wanted = {"columns": columns, "extrema": extrema, "dtype": dtype, "backend": backend}
        among = {"kind": kind, "offset": offset, "stride": stride, "positive": positive}
        vectors = {"bias": bias, "key_a": key_a, "key_b": key_b}
        options = {"normalize": normalize, **vectors, **among, **wanted}
        return similarity_over_ranks(a, b, scale, ranks, **options)
    dtype = matrix_dtype(a) if dtype is None else dtype
    M = a.shape[-2]
    N = M if b is None else b.shape[-2]
    lead = a.shape[:-2]
    if a.numel() == 0 or N == 0 or dispatch.is_eager(backend):
        options = (kind, offset, stride, positive, normalize, columns, extrema)
        result = Result(*reference.similarity(a, b, scale, bias, key_a, key_b, *options))
        return result if positive < 0 else result.with_constant_sums()
    name = dispatch.select(backend, a.device, dtype)
    if b is not None and b.dtype != a.dtype and not normalize:
        # Inside autocast the dtypes may differ.
        a, b = a.to(dtype), b.to(dtype)
    both = columns and b is None
    if b is None and (bias is not None or offset not in (0, NO_SELF)):
        # Logits or candidates that are not symmetric need two sets.
        b, key_b, both = a.clone(), key_a, False
    fixed = not columns and positive < 0 and b is not None and not b.requires_grad
    weighted = (
        fixed
        and a.requires_grad
        and (bias is None or not bias.requires_grad)
        and torch.is_grad_enabled()
    )
    call = DirectSimilarity.apply if is_plain() else ops.similarity_forward
    rows, cols, pos, loss, row_max, col_max, *_ = call(
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
        weighted,
        dtype,
        name,
    )
    if both:
        cols, col_max = rows, row_max
    result = Result(None, None)
    if positive >= 0:
        result = result._replace(loss=ungroup(loss, lead), pos=ungroup(pos, lead))
    if positive < 0 or extrema:
        cols_lse = ungroup(cols[0], lead) if columns else None
        result = result._replace(rows=ungroup(rows[0], lead), cols=cols_lse)
    if not extrema:
        return result
    col_max = ungroup(col_max, lead) if columns else None
    result = result._replace(row_max=ungroup(row_max, lead), col_max=col_max)
    return result if positive < 0 else result.with_constant_sums()
