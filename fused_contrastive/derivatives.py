"""Autograd formulas of ops: that of the similarity family's gradients, which gives second derivatives, and the errors beyond.

An op with a formula is differentiable wherever it is called, as PyTorch's own are: in reverse and forward mode, under torch.func (vmap: batching.py),
under torch.compile and in exported programs."""

from __future__ import annotations

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from . import ops

Formula = torch.autograd.function._SingleLevelFunction
"""torch.autograd.Function below torch.func's transforms, which have been dealt with where an op's autograd formula is asked for."""

below_autograd = torch._C._AutoDispatchBelowAutograd
"""A context in which ops do without their formulas."""


def is_transformed() -> bool:
    """Inside a torch.func transform or forward mode, where tensors may have tangents."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def register_formula(op, formula: type) -> None:
    """Make `formula`, which has setup_context, backward and jvp, the autograd formula of `op`."""

    def forward(*arguments):
        # Function.apply has turned differentiation off, which the transforms further out need.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), below_autograd():
            return op(*arguments)

    formula.forward = staticmethod(forward)

    def call(*arguments):
        if is_transformed() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            with enable_single_level_autograd_function():
                return formula.apply(*arguments)
        with below_autograd():
            return op(*arguments)

    ops.LIBRARY.impl(op, call, "Autograd")


class FirstDerivative(torch.autograd.Function):
    """The gradients (the first `count` tensors), tied to what they depend on: differentiating them again raises, never gives a wrong
    number."""

    @staticmethod
    def forward(count, *tensors):
        return tuple(gradient.clone() for gradient in tensors[:count])

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    @staticmethod
    def backward(ctx, *_):
        unavailable("second")


def unavailable(what: str):
    raise NotImplementedError(
        f"{what} derivatives of the fused losses are not available: use backend='eager' where you need them"
    )


def only(needed, tensors) -> tuple:
    return tuple(x if need else None for x, need in zip(tensors, needed, strict=True))


class Gradient(Formula):
    """Of the backward op. What forward saved counts as constant: `similarity_second` accounts for it."""

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        tensors, ctx.options, ctx.backend = inputs[:16], inputs[16:22], inputs[26]
        ctx.computed = inputs[22:26]
        ctx.mark_non_differentiable(*(x for x, computed in zip(outputs, ctx.computed, strict=True) if not computed))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *tangents):
        needed = ctx.needs_input_grad[:6]
        found = ops.similarity_second(*tangents, *ctx.saved_tensors, *ctx.options, *needed[2:], ctx.backend)
        return *only(needed, found), *[None] * 21

    @staticmethod
    def jvp(ctx, t_rows, t_cols, *tangents):
        saved, tangents = ctx.saved_tensors, tangents[:4]
        parts = []
        if any(t is not None for t in tangents):
            parts.append(ops.similarity_second(*tangents, *saved, *ctx.options, *ctx.computed, ctx.backend)[2:])
        if t_rows is not None or t_cols is not None:
            upstream = (torch.zeros_like(g) if t is None else t for g, t in zip(saved, (t_rows, t_cols), strict=False))
            parts.append(ops.similarity_backward(*upstream, *saved[2:], *ctx.options, *ctx.computed, ctx.backend))
        return only(ctx.computed, [sum(part) for part in zip(*parts, strict=True)] if parts else [None] * 4)


class Second(Formula):
    """Of the second op: that of the outputs' tangents, which are first derivatives; the rest would be third ones."""

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.options, ctx.backend = inputs[20:26], inputs[30]
        ctx.mark_non_differentiable(*(x for x in outputs if x.numel() == 0))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:20])

    @staticmethod
    def backward(ctx, d_rows, d_cols, *gradients):
        if any(g is not None for g in gradients):
            unavailable("third")
        tangents, g_cols, saved = ctx.saved_tensors[:4], ctx.saved_tensors[5], ctx.saved_tensors[6:]
        needed = ctx.needs_input_grad[:10]
        upstream = (
            torch.zeros_like(saved[6][0]) if d_rows is None else d_rows,
            torch.zeros_like(g_cols) if d_cols is None else d_cols,
        )
        of_tangents = ops.similarity_backward(*upstream, *saved, *ctx.options, *needed[:4], ctx.backend)
        found = ops.similarity_second(*tangents, *upstream, *saved, *ctx.options, *needed[6:], ctx.backend)[2:]
        return *only(needed[:4], of_tangents), None, None, *only(needed[6:], found), *[None] * 21

    @staticmethod
    def jvp(ctx, *_):
        unavailable("third, and forward-mode derivatives of forward-mode,")


register_formula(ops.similarity_backward, Gradient)
register_formula(ops.similarity_second, Second)
