"""The first derivatives of the sigmoid family and `sigmoid_sum`, which the losses over it call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import reference
from ..backends import dispatch
from ..dtypes import matrix_dtype
from ..ops import sigmoid as sigmoid_ops
from ..problem import NO_SELF
from ._formulas import (
    Formula,
    below_autograd,
    first_derivative_context,
    is_plain,
    only,
    register_derivatives,
)
from .similarity import group_keys


class Sigmoid(Formula):
    """Of the forward op (sigmoid_ops.py). Differentiable: rows."""

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.save_for_forward(*Sigmoid.remember(ctx, inputs, outputs))

    @staticmethod
    def remember(ctx, inputs, outputs):
        *operands, kind, offset, stride, positive, sign, normalize, _extrema, dtype, backend = (
            inputs
        )
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
            gradients = sigmoid_ops.sigmoid_backward(g, *saved, *ctx.options, *needed, ctx.backend)
        return *only(needed, gradients), *[None] * 11

    @staticmethod
    def jvp(ctx, *tangents):
        saved, needs = ctx.saved_tensors, (False,) * 4
        g = saved[2].new_zeros(saved[0].shape[:2])
        t_rows, *_ = sigmoid_ops.sigmoid_second(
            *tangents[:4], g, *saved, *ctx.options, *needs, ctx.backend
        )
        return t_rows, *[None] * 6


register_derivatives(
    sigmoid_ops.sigmoid_forward, sigmoid_ops.sigmoid_backward, sigmoid_ops.sigmoid_second, Sigmoid
)


class DirectSigmoid(torch.autograd.Function):
    """The same for calls that no transform and no compiler looks at: 20 us less."""

    @staticmethod
    def forward(ctx, *arguments):
        with below_autograd():
            outputs = sigmoid_ops.sigmoid_forward(*arguments)
        Sigmoid.remember(ctx, arguments, outputs)
        return outputs

    backward = Sigmoid.backward


class SigmoidResult(NamedTuple):
    """What `sigmoid_sum` returns, ``[..., M]`` each in the accumulation dtype; pos and row_max are None when not asked for and detached."""

    rows: torch.Tensor
    pos: torch.Tensor | None
    row_max: torch.Tensor | None


def sigmoid_sum(
    a: torch.Tensor,
    b: torch.Tensor | None,
    scale: torch.Tensor,
    row_bias: torch.Tensor | None = None,
    *,
    sign: int = 1,
    key_a: torch.Tensor | None = None,
    key_b: torch.Tensor | None = None,
    kind: str = "all",
    offset: int = 0,
    stride: int = 1,
    positive: int = -1,
    normalize: bool = False,
    extrema: bool = False,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> SigmoidResult:
    """``rows_i = sum_j softplus(y_ij)`` over the candidates, ``y_ij = sign (scale <a_i, b_j> + row_bias_i)``, and with ``positive >= 0`` also
    ``softplus(-y_i,p(i))``; differentiable in `a`, `b`, `scale` and `row_bias`, in O((M + N) D) memory.

    Checked tensors in: ``a [..., M, D]``, ``b [..., N, D]`` or None (b is a), whose leading dimensions agree already; scale from `as_scalar`;
    row_bias broadcastable to ``[..., M]``; sign +1 or -1. ``kind, offset, stride, positive``: candidates.py. With `extrema` row_max is the largest y of a
    row's candidates. `dtype` is what the products read, None: `matrix_dtype` of a.
    """
    if backend is not None:
        dispatch.check_name(backend)
    dtype = matrix_dtype(a) if dtype is None else dtype
    M, D = a.shape[-2:]
    N = M if b is None else b.shape[-2]
    lead = a.shape[:-2]
    if row_bias is not None:
        row_bias = row_bias.to(scale.dtype).expand(*lead, M)
    if a.numel() == 0 or N == 0 or dispatch.is_eager(backend):
        return SigmoidResult(
            *reference.sigmoid_sum(
                a,
                b,
                scale,
                row_bias,
                key_a,
                key_b,
                kind,
                offset,
                stride,
                positive,
                sign,
                normalize,
                extrema,
            )
        )
    name = dispatch.select(backend, a.device, dtype, D, "sigmoid")
    if b is not None and b.dtype != a.dtype and not normalize:  # inside autocast
        a, b = a.to(dtype), b.to(dtype)
    if b is None and offset not in (0, NO_SELF):  # not symmetric
        b, key_b = a.clone(), key_a
    call = DirectSigmoid.apply if is_plain() else sigmoid_ops.sigmoid_forward
    rows, pos, row_max, *_ = call(
        a.reshape(-1, M, D),
        None if b is None else b.reshape(-1, N, D),
        scale,
        None if row_bias is None else row_bias.reshape(-1, M),
        group_keys(key_a, lead, M),
        None if b is None else group_keys(key_b, lead, N),
        kind, offset, stride, positive, sign, normalize, extrema, dtype, name,
    )  # fmt: skip

    def restore(x, present):
        return x.reshape(*lead, M) if present else None

    return SigmoidResult(
        rows.reshape(*lead, M), restore(pos, positive >= 0), restore(row_max, extrema)
    )
