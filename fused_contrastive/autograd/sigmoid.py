"""The first derivatives of the sigmoid family and `sigmoid_sum`, which the losses over it call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import reference
from ..backends import dispatch
from ..distributed.groups import Ranks
from ..dtypes import matrix_dtype
from ..ops import sigmoid as ops
from ..problem import NO_SELF, MaybeNone
from ._formulas import Formula, first_derivative_context, is_plain, only, register_derivatives
from ._groups import group, group_vector, ungroup
from .over_ranks import sigmoid_over_ranks


class Sigmoid(Formula):
    """The formula of the forward op (ops/sigmoid.py). The row sums are differentiable."""

    @staticmethod
    def remember(ctx, inputs, outputs):
        *operands, kind, offset, stride, positive, sign, normalize = inputs[:12]
        *_, dtype, backend = inputs
        _rows, pos, row_max, *prepared = outputs
        ctx.mark_non_differentiable(pos, row_max, *prepared)
        ctx.set_materialize_grads(False)
        saved = (*operands, pos, *prepared)
        ctx.save_for_backward(*saved)
        ctx.options = (kind, offset, stride, positive, sign, normalize, dtype)
        ctx.backend = backend
        return saved

    @staticmethod
    def backward(ctx, g, *_):
        if g is None:
            return (None,) * 15
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:4]
        with first_derivative_context():
            gradients = ops.sigmoid_backward(g, *saved, *ctx.options, *needed, ctx.backend)
        return *only(needed, gradients), *[None] * 11

    @staticmethod
    def jvp(ctx, *tangents):
        saved, needs = ctx.saved_tensors, (False,) * 4
        g = saved[2].new_zeros(saved[0].shape[:2])
        t_rows, *_ = ops.sigmoid_second(*tangents[:4], g, *saved, *ctx.options, *needs, ctx.backend)
        return t_rows, *[None] * 6


DirectSigmoid = register_derivatives(
    ops.sigmoid_forward, ops.sigmoid_backward, ops.sigmoid_second, Sigmoid
)


class SigmoidResult(NamedTuple):
    """What `sigmoid_sum` returns, in the accumulation dtype.

    The last two are detached, and None when not asked for.
    """

    rows: torch.Tensor  # [..., M]
    pos: torch.Tensor | MaybeNone  # [..., M]
    row_max: torch.Tensor | MaybeNone  # [..., M]


def sigmoid_sum(
    a: torch.Tensor,  # [..., M, D]
    b: torch.Tensor | None,  # [..., N, D]
    scale: torch.Tensor,  # []
    row_bias: torch.Tensor | None = None,  # broadcastable to [..., M]
    *,
    sign: int = 1,
    key_a: torch.Tensor | None = None,  # [..., M]
    key_b: torch.Tensor | None = None,  # [..., N]
    kind: str = "all",
    offset: int = 0,
    stride: int = 1,
    positive: int = -1,
    normalize: bool = False,
    extrema: bool = False,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    ranks: Ranks | None = None,
) -> SigmoidResult:
    """``rows_i = sum_j softplus(y_ij)`` over the candidates. It takes checked tensors.

    It needs O((M + N) D) memory. ``y_ij = sign * (scale * <a_i, b_j> + row_bias_i)``. With
    ``positive >= 0`` the row's positive p(i) adds ``softplus(-y_i,p(i))``. The sums are
    differentiable in `a`, `b`, `scale` and `row_bias`.

    Args:
        a: rows.
        b: columns, whose leading dimensions agree with those of a; None: b is a.
        scale: what multiplies the dot products, as `as_scalar` returns it.
        row_bias: added to the logits of each row.
        sign: +1 or -1.
        key_a: the keys of the rows, and with one set also of the columns.
        key_b: the keys of the columns.
        kind: which columns are candidates. problem.py describes it with `offset` and `stride`.
        offset: the self of row i is column ``i + offset``.
        stride: the rows of one view.
        positive: the positive of row i is column ``(i + positive) % N``; -1: there is none.
        normalize: divide every row by its norm first.
        extrema: whether the largest y of each row's candidates is returned, too.
        dtype: the dtype that the products read; None: `matrix_dtype` of a.
        backend: a name; None: the default of the device.
        ranks: whose columns are candidates, too (ops/sigmoid_over_ranks.py). Nothing is normalised
            then.
    """
    if backend is not None:
        dispatch.check_name(backend)
    if ranks is not None:
        wanted = {"extrema": extrema, "dtype": dtype, "backend": backend}
        among = {"kind": kind, "offset": offset, "stride": stride, "positive": positive}
        named: dict[str, Any] = {"key_a": key_a, "key_b": key_b, **among, **wanted}
        found = sigmoid_over_ranks(a, b, scale, row_bias, ranks, sign=sign, **named)
        return SigmoidResult(*found)
    dtype = matrix_dtype(a) if dtype is None else dtype
    M = a.shape[-2]
    N = M if b is None else b.shape[-2]
    lead = a.shape[:-2]
    if row_bias is not None:
        row_bias = row_bias.to(scale.dtype).expand(*lead, M)
    if a.numel() == 0 or N == 0 or dispatch.is_eager(backend):
        options = (kind, offset, stride, positive, sign, normalize, extrema)
        return SigmoidResult(*reference.sigmoid_sum(a, b, scale, row_bias, key_a, key_b, *options))
    name = dispatch.select(backend, a.device, dtype)
    if b is not None and b.dtype != a.dtype and not normalize:
        # Inside autocast the dtypes may differ.
        a, b = a.to(dtype), b.to(dtype)
    if b is None and offset not in (0, NO_SELF):
        # Candidates that are not symmetric need two sets.
        b, key_b = a.clone(), key_a
    call = DirectSigmoid.apply if is_plain() else ops.sigmoid_forward
    rows, pos, row_max, *_ = call(
        group(a),
        group(b),
        scale,
        None if row_bias is None else row_bias.reshape(-1, M),
        group_vector(key_a, lead, M, torch.int64),
        None if b is None else group_vector(key_b, lead, N, torch.int64),
        kind,
        offset,
        stride,
        positive,
        sign,
        normalize,
        extrema,
        dtype,
        name,
    )
    return SigmoidResult(
        ungroup(rows, lead),
        ungroup(pos, lead) if positive >= 0 else None,
        ungroup(row_max, lead) if extrema else None,
    )
