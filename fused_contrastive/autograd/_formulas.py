"""Autograd formulas of ops up to second derivatives, and the errors for all beyond these.

An op with a formula is differentiable wherever it is called, as PyTorch's own ops are. That holds
in reverse and forward mode, under torch.func (vmap: ops/_vmap.py), under torch.compile and in
exported programs.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

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
    """Whether tensors may have tangents: inside a torch.func transform or forward mode."""
    return are_transforms_active() or in_forward_mode()


def is_plain() -> bool:
    """Whether neither a transform nor a compiler looks at a call."""
    return not (is_transformed() or torch.compiler.is_compiling())


def first_derivative_context():
    """The context in which a backward pass calls the backward op.

    Where its result is not differentiated the op is called below autograd, which saves a little.
    """
    return (
        below_autograd() if is_plain() and not torch.is_grad_enabled() else contextlib.nullcontext()
    )


def register_formula(op, formula: type[Any]) -> None:
    """Make `formula`, which has setup_context, backward and jvp, the autograd formula of `op`."""

    def forward(*arguments):
        # Function.apply has turned differentiation off, but the transforms further out need it.
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
    """Ties gradients, the first `count` tensors, to the tensors that they depend on.

    To differentiate them again raises an error, so it never gives a wrong number.
    """

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
    """Raise inside vmap and forward mode, for losses without rules for them.

    Tensors that take no part in a transform are let through.
    """
    if not is_transformed():
        return
    kinds = active_transforms()
    for x in tensors:
        if not isinstance(x, torch.Tensor):
            continue
        wrapped = is_wrapped_by_transform(x)
        if wrapped and TransformType.Vmap in kinds:
            raise NotImplementedError(
                "torch.func.vmap of this fused loss is not available: "
                "use backend='eager' where you need it"
            )
        if wrapped and TransformType.Jvp in kinds:
            unavailable("forward-mode")
        if in_forward_mode() and forward_ad.unpack_dual(x).tangent is not None:
            unavailable("forward-mode")


def refuse_export(*tensors) -> None:
    """Raise where an exported program would lack gradients that may be wanted."""
    differentiable = torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in tensors
    )
    if differentiable and torch.compiler.is_exporting():
        raise NotImplementedError(
            "an exported program would not have the gradient of this fused loss: "
            "export under torch.no_grad(), or use backend='eager'"
        )


def unavailable(what: str):
    """Raise NotImplementedError: derivatives of this kind do not exist."""
    raise NotImplementedError(
        f"{what} derivatives of this fused loss are not available: "
        "use backend='eager' where you need them"
    )


def only(needed, tensors) -> tuple:
    """The tensors that are needed, with None in place of the others."""
    return tuple(x if need else None for x, need in zip(tensors, needed, strict=True))


class Parts(NamedTuple):
    """The arguments of a family's backward op, in the order of its schema."""

    upstream: tuple  # gradients of the outputs
    saved: tuple  # a, b, scale, bias, then whatever else forward was given and returned
    options: tuple  # what is no tensor
    needs: tuple  # four flags: which gradients are computed
    backend: str


class Layout(NamedTuple):
    """Where the parts of the backward op's arguments begin."""

    saved: int
    options: int
    needs: int

    @classmethod
    def of(cls, backward) -> Layout:
        """The layout of this op."""
        names = argument_names(backward)
        return cls(names.index("a"), names.index("kind"), names.index("need_a"))

    def split(self, arguments) -> Parts:
        """The parts of the backward op's arguments."""
        return Parts(
            arguments[: self.saved],
            arguments[self.saved : self.options],
            arguments[self.options : self.needs],
            arguments[self.needs : self.needs + 4],
            arguments[-1],
        )


def register_derivatives(forward, backward, second, formula: type[Any]) -> type[Any]:
    """Give a family's three ops their autograd formulas, and return a direct Function.

    `formula` is that of the forward op. Its `remember(ctx, inputs, outputs)` saves tensors for the
    backward pass and returns them.

    `backward` takes the `Parts` of its arguments. `second` takes the tangents of a, b, scale and
    bias before the same arguments. It returns the tangents of the outputs, each of the shape of its
    upstream gradient, and those of the gradients. These are at the same time the gradients of the
    gradients.

    The Function that is returned has the same derivatives and serves calls that `is_plain` allows.
    It saves 20 us per call. The ordinary path enters Python twice. First the dispatcher calls the
    op's formula, which looks for transforms and calls Function.apply. Then the op is dispatched
    again below autograd, inside three contexts. The direct path is Function.apply with one
    dispatch.
    """

    def setup_context(ctx, inputs, outputs):
        ctx.save_for_forward(*formula.remember(ctx, inputs, outputs))

    formula.setup_context = staticmethod(setup_context)
    layout = Layout.of(backward)
    register_formula(forward, formula)
    register_formula(backward, gradient_formula(backward, second, layout))
    register_formula(second, second_formula(backward, second, layout))

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            with below_autograd():
                outputs = forward(*arguments)
            formula.remember(ctx, arguments, outputs)
            return outputs

        backward = formula.backward

    return Direct


def gradient_formula(backward, second, layout: Layout) -> type:
    """The formula of the backward op, in which what forward returned counts as constant.

    `second` accounts for its dependence on the operands.
    """
    after_operands = layout.saved + 4
    not_tensors = layout.needs + 1 - layout.saved

    class Gradient(Formula):
        @staticmethod
        def setup_context(ctx, inputs, outputs):
            upstream, saved, ctx.options, ctx.computed, ctx.backend = layout.split(inputs)
            absent = (x for x, here in zip(outputs, ctx.computed, strict=True) if not here)
            ctx.mark_non_differentiable(*absent)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*upstream, *saved)
            ctx.save_for_forward(*upstream, *saved)

        @staticmethod
        def backward(ctx, *tangents):
            needed = ctx.needs_input_grad[:after_operands]
            needs = needed[layout.saved :]
            found = second(*tangents, *ctx.saved_tensors, *ctx.options, *needs, ctx.backend)
            return *only(needed, found), *[None] * not_tensors

        @staticmethod
        def jvp(ctx, *tangents):
            tensors, rest = ctx.saved_tensors, (*ctx.options, *ctx.computed, ctx.backend)
            upstream, saved = tensors[: layout.saved], tensors[layout.saved :]
            t_upstream, t_operands = (
                tangents[: layout.saved],
                tangents[layout.saved : after_operands],
            )
            parts = []
            if any(t is not None for t in t_operands):
                found = second(*t_operands, *tensors, *rest)
                parts.append(found[layout.saved :])
            if any(t is not None for t in t_upstream):
                # The gradients are linear in the upstream ones.
                parts.append(backward(*or_zeros(t_upstream, upstream), *saved, *rest))
            if not parts:
                return only(ctx.computed, [None] * 4)
            return only(ctx.computed, [sum(part) for part in zip(*parts, strict=True)])

    return Gradient


def second_formula(backward, second, layout: Layout) -> type:
    """The formula of the second op.

    Its outputs' tangents have first derivatives. All others would be third derivatives.
    """
    not_tensors = layout.needs + 1 - layout.saved

    class Second(Formula):
        @staticmethod
        def setup_context(ctx, inputs, outputs):
            given, saved, ctx.options, _, ctx.backend = layout.split(inputs[4:])
            ctx.mark_non_differentiable(*(x for x in outputs if x.numel() == 0))
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs[:4], *given, *saved)

        @staticmethod
        def backward(ctx, *upstream):
            if any(g is not None for g in upstream[layout.saved :]):
                unavailable("third")
            tangents, after = ctx.saved_tensors[:4], 4 + layout.saved
            given, saved = ctx.saved_tensors[4:after], ctx.saved_tensors[after:]
            filled = or_zeros(upstream[: layout.saved], given)
            need_tangents = ctx.needs_input_grad[:4]
            need_operands = ctx.needs_input_grad[after : after + 4]
            common = (*filled, *saved, *ctx.options)
            of_tangents = backward(*common, *need_tangents, ctx.backend)
            found = second(*tangents, *common, *need_operands, ctx.backend)
            return (
                *only(need_tangents, of_tangents),
                *[None] * layout.saved,
                *only(need_operands, found[layout.saved :]),
                *[None] * not_tensors,
            )

        @staticmethod
        def jvp(ctx, *_):
            unavailable("third, and forward-mode derivatives of forward-mode,")

    return Second


def or_zeros(tensors, like) -> list[torch.Tensor]:
    """The tensors, with zeros like those of `like` in place of None."""
    return [torch.zeros_like(y) if x is None else x for x, y in zip(tensors, like, strict=True)]
