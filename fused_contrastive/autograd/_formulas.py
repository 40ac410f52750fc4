"""Autograd formulas of ops: those of a family's gradients, which give second derivatives, and the errors beyond.

An op with a formula is differentiable wherever it is called, as PyTorch's own are: in reverse and forward mode, under torch.func (vmap: batching.py),
under torch.compile and in exported programs."""

from __future__ import annotations

import contextlib

import torch

from .._torch_internals import SingleLevelFunction as Formula
from .._torch_internals import (
    TransformType,
    active_transforms,
    any_requires_grad,
    are_transforms_active,
    argument_names,
    below_autograd,
    enable_single_level_autograd_function,
    forward_ad,
    in_forward_mode,
    is_wrapped_by_transform,
    set_forward_mode_enabled,
)
from ..ops._library import LIBRARY


def is_transformed() -> bool:
    """Inside a torch.func transform or forward mode, where tensors may have tangents."""
    return are_transforms_active() or in_forward_mode()


def is_plain() -> bool:
    """Whether neither a transform nor a compiler looks at a call."""
    return not (is_transformed() or torch.compiler.is_compiling())


def first_derivative_context():
    """What a backward pass calls the backward op in: where its result is not differentiated, below autograd, which saves a little."""
    return (
        below_autograd() if is_plain() and not torch.is_grad_enabled() else contextlib.nullcontext()
    )


def register_formula(op, formula: type) -> None:
    """Make `formula`, which has setup_context, backward and jvp, the autograd formula of `op`."""

    def forward(*arguments):
        # Function.apply has turned differentiation off, which the transforms further out need.
        with torch.enable_grad(), set_forward_mode_enabled(True), below_autograd():
            return op(*arguments)

    formula.forward = staticmethod(forward)

    def call(*arguments):
        if is_transformed() or (torch.is_grad_enabled() and any_requires_grad(*arguments)):
            with enable_single_level_autograd_function():
                return formula.apply(*arguments)
        with below_autograd():
            return op(*arguments)

    LIBRARY.impl(op, call, "Autograd")


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


def refuse_transforms(*tensors) -> None:
    """For losses without rules for vmap and forward mode: raises inside either, unless the tensors take no part in a transform."""
    if not is_transformed():
        return
    kinds = active_transforms()
    for x in tensors:
        if not isinstance(x, torch.Tensor):
            continue
        wrapped = is_wrapped_by_transform(x)
        if wrapped and TransformType.Vmap in kinds:
            raise NotImplementedError(
                "torch.func.vmap of this fused loss is not available: use backend='eager' where you need it"
            )
        if wrapped and TransformType.Jvp in kinds:
            unavailable("forward-mode")
        if in_forward_mode() and forward_ad.unpack_dual(x).tangent is not None:
            unavailable("forward-mode")


def refuse_export(*tensors) -> None:
    """For losses whose gradients an exported program would not have: raises where they may be wanted."""
    differentiable = torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in tensors
    )
    if differentiable and torch.compiler.is_exporting():
        raise NotImplementedError(
            "an exported program would not have the gradient of this fused loss: export under torch.no_grad(), or use backend='eager'"
        )


def unavailable(what: str):
    raise NotImplementedError(
        f"{what} derivatives of this fused loss are not available: use backend='eager' where you need them"
    )


def only(needed, tensors) -> tuple:
    return tuple(x if need else None for x, need in zip(tensors, needed, strict=True))


def register_derivatives(forward, backward, second, formula: type) -> None:
    """Autograd formulas of a family's three ops: `formula` is the forward op's.

    `backward` takes the upstream gradients, a, b, scale and bias, what else forward was given and returned, its options, four flags and the backend;
    `second` takes the tangents of a, b, scale and bias and then the same, and returns those of the outputs, each of the shape of its upstream
    gradient, and those of the gradients, and so the gradients of the gradients.
    """
    names = argument_names(backward)
    first, options, flags = names.index("a"), names.index("kind"), names.index("need_a")
    register_formula(forward, formula)
    register_formula(backward, gradient_formula(backward, second, first, options, flags))
    register_formula(second, second_formula(backward, second, first, options, flags))


def gradient_formula(backward, second, first: int, options: int, flags: int) -> type:
    """Of the backward op. What forward returned counts as constant: `second` accounts for it."""

    class Gradient(Formula):
        @staticmethod
        def setup_context(ctx, inputs, outputs):
            ctx.options, ctx.computed, ctx.backend = (
                inputs[options:flags],
                inputs[flags:-1],
                inputs[-1],
            )
            ctx.mark_non_differentiable(
                *(x for x, computed in zip(outputs, ctx.computed, strict=True) if not computed)
            )
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs[:options])
            ctx.save_for_forward(*inputs[:options])

        @staticmethod
        def backward(ctx, *tangents):
            needed = ctx.needs_input_grad[: first + 4]
            found = second(
                *tangents, *ctx.saved_tensors, *ctx.options, *needed[first:], ctx.backend
            )
            return *only(needed, found), *[None] * (flags + 1 - first)

        @staticmethod
        def jvp(ctx, *tangents):
            saved, t_upstream, t_operands = (
                ctx.saved_tensors,
                tangents[:first],
                tangents[first : first + 4],
            )
            rest, parts = (*ctx.options, *ctx.computed, ctx.backend), []
            if any(t is not None for t in t_operands):
                parts.append(second(*t_operands, *saved, *rest)[first:])
            if any(t is not None for t in t_upstream):
                upstream = (
                    torch.zeros_like(g) if t is None else t
                    for g, t in zip(saved, t_upstream, strict=False)
                )
                parts.append(backward(*upstream, *saved[first:], *rest))
            return only(
                ctx.computed,
                [sum(part) for part in zip(*parts, strict=True)] if parts else [None] * 4,
            )

    return Gradient


def second_formula(backward, second, first: int, options: int, flags: int) -> type:
    """Of the second op: that of the outputs' tangents, which are first derivatives; the rest would be third ones."""
    after = 4 + first

    class Second(Formula):
        @staticmethod
        def setup_context(ctx, inputs, outputs):
            ctx.options, ctx.backend = inputs[4 + options : 4 + flags], inputs[-1]
            ctx.mark_non_differentiable(*(x for x in outputs if x.numel() == 0))
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs[: 4 + options])

        @staticmethod
        def backward(ctx, *upstream):
            if any(g is not None for g in upstream[first:]):
                unavailable("third")
            tangents, given, saved = (
                ctx.saved_tensors[:4],
                ctx.saved_tensors[4:after],
                ctx.saved_tensors[after:],
            )
            upstream = [
                torch.zeros_like(x) if g is None else g
                for g, x in zip(upstream, given, strict=False)
            ]
            needed = ctx.needs_input_grad
            of_tangents = backward(*upstream, *saved, *ctx.options, *needed[:4], ctx.backend)
            of_operands = second(
                *tangents, *upstream, *saved, *ctx.options, *needed[after : after + 4], ctx.backend
            )
            return (
                *only(needed[:4], of_tangents),
                *[None] * first,
                *only(needed[after : after + 4], of_operands[first:]),
                *[None] * (flags + 1 - first),
            )

        @staticmethod
        def jvp(ctx, *_):
            unavailable("third, and forward-mode derivatives of forward-mode,")

    return Second
