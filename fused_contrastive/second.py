"""Derivatives of derivatives: gradients of the similarity family that can be differentiated once more, and the error where nothing can."""

from __future__ import annotations

import torch

from . import ops


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


class SecondDerivative(FirstDerivative):
    """The same for second derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def backward(ctx, *_):
        unavailable("third")

    @staticmethod
    def jvp(ctx, *_):
        unavailable("third")


def unavailable(order: str):
    raise NotImplementedError(
        f"{order} derivatives of the fused losses are not available: use backend='eager' where you need them"
    )


class Gradient(torch.autograd.Function):
    """The backward op (ops.py) with its own derivatives: what `Similarity` returns where gradients are differentiated.

    Rows, cols and all else that forward saved are constants here: `similarity_second` differentiates through them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments):
        return ops.similarity_backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        tensors, ctx.options = inputs[:16], inputs[16:]
        ctx.mark_non_differentiable(*(x for x, need in zip(outputs, ctx.options[6:10], strict=True) if not need))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *tangents):
        needed = ctx.needs_input_grad[:6]
        found = second(ctx.saved_tensors, ctx.options[:6], tangents, needed[2:])
        return (*(x if need else None for x, need in zip(found, needed, strict=True)), *[None] * 21)

    @staticmethod
    def jvp(ctx, t_rows, t_cols, t_a, t_b, t_scale, t_bias, *_):
        saved, needed = ctx.saved_tensors, ctx.options[6:10]
        found = [None] * 4
        if any(t is not None for t in (t_a, t_b, t_scale, t_bias)):
            found = second(saved, ctx.options[:6], (t_a, t_b, t_scale, t_bias), needed)[2:]
        if t_rows is not None or t_cols is not None:
            upstream = [torch.zeros_like(g) if t is None else t for g, t in zip(saved, (t_rows, t_cols), strict=False)]
            linear = Gradient.apply(*upstream, *saved[2:], *ctx.options)
            found = linear if found[0] is None else [x + y for x, y in zip(found, linear, strict=True)]
        return tuple(x if need else None for x, need in zip(found, needed, strict=True))


class Tangents(torch.autograd.Function):
    """Of rows (of loss where there is a positive) and cols along tangents of a, b, scale and bias, from what `Similarity` saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t_a, t_b, t_scale, t_bias, *saved_and_options):
        saved, options = saved_and_options[:14], saved_and_options[14:20]
        rows, cols, positive = saved[6], saved[7], options[3]
        g_cols = rows.new_empty(0) if cols.numel() == 0 or positive >= 0 else torch.zeros_like(cols[0])
        tangents = (t_a, t_b, t_scale, t_bias)
        return ops.similarity_second(
            *tangents, torch.zeros_like(rows[0]), g_cols, *saved[:13], *options, False, False, False, False
        )[:2]

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.options = inputs[18:]
        if outputs[1].numel() == 0:
            ctx.mark_non_differentiable(outputs[1])
        ctx.save_for_backward(*inputs[:18])
        ctx.save_for_forward(*inputs[:18])

    @staticmethod
    def backward(ctx, *upstream):
        tangents, saved, needed = ctx.saved_tensors[:4], ctx.saved_tensors[4:], ctx.needs_input_grad[:8]
        *options, backend = ctx.options
        of_tangents = ops.similarity_backward(*upstream, *saved, *options, *needed[:4], backend)
        found = (*of_tangents, *second((*upstream, *saved), options, tangents, needed[4:])[2:])
        if torch.is_grad_enabled():
            found = SecondDerivative.apply(8, *found, *(x for x in (*upstream, *tangents, *saved[:4]) if x is not None))
        return (*(x if need else None for x, need in zip(found, needed, strict=True)), *[None] * 17)

    @staticmethod
    def jvp(ctx, *_):
        raise NotImplementedError(
            "forward-mode derivatives of forward-mode derivatives of the fused losses are not available: take one of them in "
            "reverse mode (torch.func.hessian does), or use backend='eager'"
        )


def second(saved, options, tangents, needed):
    """The second op on what the backward op was given; differentiating what it returns raises."""
    found = ops.similarity_second(*tangents, *saved[:15], *options, *needed)
    if torch.is_grad_enabled():
        found = SecondDerivative.apply(6, *found, *(x for x in (*tangents, *saved[:6]) if x is not None))
    return found
