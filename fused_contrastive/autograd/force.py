"""The force family as differentiable functions: forces, the loss of a step along them, and drifts.

Derivatives are of first order. A second one raises an error that says so. docs/maths.md has the
derivations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import force as ops
from ..problem import ForceForward, ForceProblem
from ._formulas import FirstDerivative


def call_forward(problem: ForceProblem, backend: str) -> ForceForward:
    """Call the forward op, whose arguments are the fields of `problem` in their order.

    The op returns an empty tensor for log-sum-exps that are absent. Here they become None.
    """
    found = ForceForward(*ops.force_forward(*problem, backend))
    return found._replace(lse_cols=None) if problem.all_rows else found


def rms(x: Tensor) -> Tensor:
    """The root mean square over the last two dimensions, or 1 where it is 0.

    The squares are taken of numbers next to 1, so that none overflows or underflows.

    Args:
        x: ``[..., M, D]``.

    Returns:
        ``[..., 1, 1]``.
    """
    largest = x.detach().abs().amax((-2, -1), keepdim=True)
    largest = largest.masked_fill(largest == 0, 1.0)
    square = (x / largest).square().mean((-2, -1), keepdim=True)
    return square.masked_fill(square == 0, 1.0).sqrt() * largest


class ForceOptions(NamedTuple):
    """The options of the force and of its loss.

    Every point is a row of the softmaxes.
    """

    rows: int  # the negatives, which are the first points of x
    mask: bool  # whether self pairs are left out of both softmaxes
    floor: float  # the lower bound of log A, or -inf
    normalizer: str | None  # None, "dist_affinity_rms" or "force_rms"

    def problem(self, x: Tensor, inverse: Tensor, scale: Tensor | None) -> ForceProblem:
        """The call of the forward op.

        Args:
            x: ``[G, P, D]``.
            inverse: inverse temperatures ``[K]``.
            scale: ``[G]``; None is the mean distance.
        """
        return ForceProblem(
            x,
            inverse,
            scale,
            weight=None,
            rows=self.rows,
            negatives=self.rows,
            mask=self.mask,
            floor=self.floor,
            rms=self.normalizer == "dist_affinity_rms",
            separate=self.normalizer == "force_rms",
        )


def force(x: Tensor, inverse_temperature: Tensor, options: ForceOptions, backend: str) -> Tensor:
    """The force on each row, differentiable in the points and the temperature.

    Args:
        x: points ``[G, P, D]``, the negatives before the positives.
        inverse_temperature: ``[1]`` in the accumulation dtype of x.

    Returns:
        ``[G, rows, D]`` in the accumulation dtype.
    """
    found, *_ = Force.apply(x, inverse_temperature, options, backend)
    found = found[0]
    return found / rms(found) if options.normalizer == "force_rms" else found


class Force(torch.autograd.Function):
    """The forward op at one temperature and a scale of 1. Its force is differentiable.

    It returns what the backward op reads beside it: force, log_norm, lse_rows, shift and sums.
    """

    @staticmethod
    def forward(
        x: Tensor,  # [G, P, D]
        inverse_temperature: Tensor,  # [1]
        options: ForceOptions,
        backend: str,
    ):
        ones = inverse_temperature.new_ones(x.shape[0])
        found = call_forward(options.problem(x, inverse_temperature, ones), backend)
        return found.force, found.log_norm, found.lse_rows, found.shift, found.sums

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, inverse_temperature, options, backend = inputs
        _force, *saved = outputs
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, inverse_temperature, *saved)
        ctx.options, ctx.backend = options, backend

    @staticmethod
    def backward(ctx, g, *_):
        if g is None:
            return None, None, None, None
        saved, options = ctx.saved_tensors, ctx.options
        through_norm = options.normalizer == "dist_affinity_rms"
        gradients = ops.force_backward(
            g, *saved, options.rows, options.mask, options.floor, through_norm, ctx.backend
        )
        # Gradients are enabled here only with create_graph=True.
        if torch.is_grad_enabled():
            gradients = FirstDerivative.apply(2, *gradients, g, *saved[:2])
        dx, dinverse = (
            d if need else None for d, need in zip(gradients, ctx.needs_input_grad, strict=False)
        )
        return dx, dinverse, None, None


def force_loss(
    x: Tensor,  # [G, P, D]
    scale: Tensor | None,  # [G]; None: the mean distance
    inverse_temperatures: Tensor,  # [K]
    options: ForceOptions,
    attached: bool,
    backend: str,
) -> Tensor:
    """``(rows / scale - stopgrad(rows / scale + force))^2`` elementwise, ``[G, rows, D]``.

    The gradient flows through ``rows / scale`` alone. With `attached` it also flows through the
    mean distance.
    """
    return ForceLoss.apply(x, scale, inverse_temperatures, options, attached, backend)[0]


class ForceLoss(torch.autograd.Function):
    """`force_loss` as the square of the force, returned together with the force and the scale."""

    @staticmethod
    def forward(x, scale, inverse_temperatures, options, attached, backend):
        found = call_forward(options.problem(x, inverse_temperatures, scale), backend)
        scale = found.scale.masked_fill(found.scale == 0, 1.0)
        if options.normalizer == "force_rms":
            force = (found.force / rms(found.force)).sum(0)
        else:
            force = found.force[0] / scale[:, None, None]
        return force * force, force, scale

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, scale, _, options, attached, backend = inputs
        _loss, force, used = outputs
        ctx.mark_non_differentiable(force, used)
        ctx.save_for_backward(x, force, used, scale)
        ctx.rows, ctx.attached, ctx.backend = options.rows, attached and scale is None, backend

    @staticmethod
    def backward(ctx, g, *_):
        x, force, scale, given = ctx.saved_tensors
        pull = (-2 * g) * force / scale[:, None, None]
        dx = dscale = None
        if ctx.attached or ctx.needs_input_grad[1]:
            dscale = -(pull * x[:, : ctx.rows]).sum((1, 2)) / scale
        if ctx.needs_input_grad[0]:
            P = x.shape[1]
            dx = (
                ops.distance_gradient(dscale / P**2, x, ctx.backend)
                if ctx.attached
                else torch.zeros_like(x)
            )
            dx[:, : ctx.rows] += pull.to(dx.dtype)
        if not ctx.needs_input_grad[1]:
            dscale = None
        # Gradients are enabled here only with create_graph=True.
        if torch.is_grad_enabled():
            dx = None if dx is None else FirstDerivative.apply(1, dx, g, x, given)[0]
            dscale = None if dscale is None else FirstDerivative.apply(1, dscale, g, x, given)[0]
        return dx, dscale, None, None, None, None


class Drift(torch.autograd.Function):
    """``mean((gen / s_in - constant)^2)`` of each group, where the difference is ``-force``."""

    @staticmethod
    def forward(
        gen: Tensor,  # [G, n, D]
        force: Tensor,  # [G, n, D], a constant
        s_in: Tensor,  # [], a constant
    ):
        return (force * force).mean((1, 2))

    @staticmethod
    def setup_context(ctx, inputs, output):
        gen, force, s_in = inputs
        ctx.save_for_backward(force, s_in, gen)

    @staticmethod
    def backward(ctx, g):
        force, s_in, gen = ctx.saved_tensors
        size = force.shape[1] * force.shape[2] * s_in
        d = (g[:, None, None] * force * (-2 / size)).to(gen.dtype)
        # Gradients are enabled here only with create_graph=True.
        if torch.is_grad_enabled():
            (d,) = FirstDerivative.apply(1, d, g, gen)
        return d, None, None
