"""The autograd function of the sigmoid family and `sigmoid_sum`, which the losses over it call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import dispatch, reference, sigmoid_ops
from .candidates import NO_SELF
from .functions import FirstDerivative, group_keys, matrix_dtype


class Sigmoid(torch.autograd.Function):
    """Outputs are those of the forward op (sigmoid_ops.py). Differentiable: rows."""

    @staticmethod
    def forward(*arguments):
        return sigmoid_ops.sigmoid_forward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *operands, kind, offset, stride, positive, sign, normalize, _extrema, dtype, backend = inputs
        _rows, pos, row_max, *prepared = outputs
        ctx.mark_non_differentiable(pos, row_max, *prepared)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, pos, *prepared)
        ctx.options = (kind, offset, stride, positive, sign, normalize, dtype)
        ctx.backend = backend

    @staticmethod
    def backward(ctx, g, *_):
        if g is None:
            return (None,) * 15
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:4]
        gradients = sigmoid_ops.sigmoid_backward(g, *saved, *ctx.options, *needed, ctx.backend)
        if torch.is_grad_enabled():  # create_graph=True
            gradients = FirstDerivative.apply(4, *gradients, g, *saved[:4])
        return (*(d if need else None for d, need in zip(gradients, needed, strict=True)), *[None] * 11)


class DirectSigmoid(torch.autograd.Function):
    """The same without `setup_context`, which torch.func needs and which costs 20 us a call."""

    @staticmethod
    def forward(ctx, *arguments):
        outputs = sigmoid_ops.sigmoid_forward(*arguments)
        Sigmoid.setup_context(ctx, arguments, outputs)
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
                a, b, scale, row_bias, key_a, key_b, kind, offset, stride, positive, sign, normalize, extrema
            )
        )
    name = dispatch.select(backend, a.device, dtype, D, "sigmoid")
    if b is not None and b.dtype != a.dtype and not normalize:  # inside autocast
        a, b = a.to(dtype), b.to(dtype)
    if b is None and offset not in (0, NO_SELF):  # not symmetric
        b, key_b = a.clone(), key_a
    function = Sigmoid if torch._C._are_functorch_transforms_active() else DirectSigmoid
    rows, pos, row_max, *_ = function.apply(
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

    return SigmoidResult(rows.reshape(*lead, M), restore(pos, positive >= 0), restore(row_max, extrema))
