"""Derivatives of the log-sum-exp over the negatives that a guide leaves, of first order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import guided as ops
from ._formulas import FirstDerivative

FIXED = [None] * (len(ops.Guided._fields) - 3)
"""Nothing but query, docs and scale has a gradient."""


def _once(gradients: tuple, *depends: Tensor | None) -> tuple:
    """The gradients, which raise an error where they are differentiated again."""
    if not torch.is_grad_enabled():
        return gradients
    return FirstDerivative.apply(len(gradients), *gradients, *depends)


class GuidedRows(torch.autograd.Function):
    """The log-sum-exps ``[M]`` of a `Guided` problem. The backward pass computes them again."""

    @staticmethod
    def forward(*problem):
        return ops.guided_forward(*problem)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.settings = inputs[5:]

    @staticmethod
    def backward(ctx, g):
        _, *found = ops.guided_backward(*ctx.saved_tensors, *ctx.settings, g, None)
        return (*_once(tuple(found), g, *ctx.saved_tensors), *FIXED)


class GuidedTotal(torch.autograd.Function):
    """``Σ w_i softplus(lse_i - pos_i)`` for constant weights ``w [M]``.

    The further results are the gradients of query, docs, scale and pos, from the same sweep.
    """

    @staticmethod
    def forward(w, pos, *problem):
        lse, *found = ops.guided_backward(*problem, w, pos)
        terms = torch.nn.functional.softplus(lse - pos, threshold=40)
        return ((w * terms).sum(), *found, -w * torch.sigmoid(lse - pos))

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(*outputs[1:], *inputs[1:5])

    @staticmethod
    def backward(ctx, g, *_):
        gradients, depends = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        *found, of_pos = _once(tuple(g * x for x in gradients), g, *depends)
        return (None, of_pos, *found, *FIXED)
