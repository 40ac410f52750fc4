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

    jvp = backward


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


def second(saved, options, tangents, needed):
    """The second op, of what the backward op was given: where it is differentiated, the error."""
    found = ops.similarity_second(*tangents, *saved[:15], *options, *needed)
    if torch.is_grad_enabled():
        depends_on = [x for x in (*tangents, *saved[:6]) if x is not None]
        found = SecondDerivative.apply(6, *found, *depends_on)
    return found


def tangents_of_outputs(saved, options, tangents):
    """Of rows (of loss where there is a positive) and cols, from what the forward op was given and returned."""
    rows, cols, positive = saved[6], saved[7], options[3]
    none = cols.numel() == 0 or positive >= 0
    constant = (torch.zeros_like(rows[0]), rows.new_empty(0) if none else torch.zeros_like(cols[0]))
    return second((*constant, *saved), options, tangents, (False,) * 4)[:2]
