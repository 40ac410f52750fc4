"""The force family: the affinity-weighted force between positives and negatives, and the losses that move the negatives along it.

Distances are computed from differences in float32 (float64 for float64 inputs), no ``[N + M, N + M]`` matrix is stored, and every
exponential is taken relative to the largest of its row, so that forces are finite where a dense float32 softmax underflows. Wrong shapes,
dtypes, devices or values raise ValueError or TypeError naming the argument. Derivations: docs/maths.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .. import checks
from ..autograd._formulas import FirstDerivative, refuse_export, refuse_transforms
from ..backends import dispatch
from ..ops import force as force_ops
from ..reference import force as force_reference
from ..scalars import inverse_scale

MASKS = ("sum", "softmax")
NORMALIZERS = (None, "dist_affinity_rms", "force_rms")


class Force(torch.autograd.Function):
    """``x [G, P, D], inverse_temperature [1]`` to the first five outputs of the forward op; differentiable: the force."""

    @staticmethod
    def forward(x, inverse_temperature, rows, mask, floor, rms, separate, backend):
        ones = inverse_temperature.new_ones(x.shape[0])
        outputs = force_ops.force_forward(
            x, inverse_temperature, ones, None, rows, rows, True, mask, -math.inf, floor, -math.inf, 0.0, rms, separate,
            backend,
        )  # fmt: skip
        force, log_norm, _, lse, _, shift, sums = outputs
        return force, log_norm, lse, shift, sums

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, inverse_temperature, rows, mask, floor, rms, _separate, backend = inputs
        _force, *saved = outputs
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, inverse_temperature, *saved)
        ctx.options = (rows, mask, floor, rms, backend)

    @staticmethod
    def backward(ctx, g, *_):
        if g is None:
            return (None,) * 8
        saved = ctx.saved_tensors
        gradients = force_ops.force_backward(g, *saved, *ctx.options)
        if torch.is_grad_enabled():  # create_graph=True
            gradients = FirstDerivative.apply(2, *gradients, g, *saved[:2])
        return (
            *(
                d if need else None
                for d, need in zip(gradients, ctx.needs_input_grad, strict=False)
            ),
            *[None] * 6,
        )


class ForceLoss(torch.autograd.Function):
    """``(rows / scale - stopgrad(rows / scale + force))^2``, which is ``force^2``, of x ``[G, P, D]``; scale ``[G]`` or None (the mean
    distance). Its gradient flows through ``rows / scale`` alone, with `attached` also through the mean distance."""

    @staticmethod
    def forward(x, scale, inverse_temperatures, rows, mask, floor, normalizer, attached, backend):
        force, _, scale, *_ = force_ops.force_forward(
            x, inverse_temperatures, scale, None, rows, rows, True, mask, -math.inf, floor, -math.inf, 0.0,
            normalizer == "dist_affinity_rms", normalizer == "force_rms", backend,
        )  # fmt: skip
        scale = scale.masked_fill(scale == 0, 1.0)
        if normalizer == "force_rms":
            force = (force / force_reference.rms(force)).sum(0)
        else:
            force = force[0] / scale[:, None, None]
        return force * force, force, scale

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, scale, _, rows, *_, attached, backend = inputs
        _loss, force, used = outputs
        ctx.mark_non_differentiable(force, used)
        ctx.save_for_backward(x, force, used, scale)
        ctx.rows, ctx.attached, ctx.backend = rows, attached and scale is None, backend

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
                force_ops.distance_gradient(dscale / P**2, x, ctx.backend)
                if ctx.attached
                else torch.zeros_like(x)
            )
            dx[:, : ctx.rows] += pull.to(dx.dtype)
        if not ctx.needs_input_grad[1]:
            dscale = None
        if torch.is_grad_enabled():  # create_graph=True
            dx = None if dx is None else FirstDerivative.apply(1, dx, g, x, given)[0]
            dscale = None if dscale is None else FirstDerivative.apply(1, dscale, g, x, given)[0]
        return (dx, dscale, *[None] * 7)


def points_dtype(name_a, a, name_b, b):
    """The dtype of the computation, once both sets ``[..., n, D]`` are checked."""
    checks.embeddings(name_a, a, at_least=2)
    checks.embeddings(name_b, b, at_least=2, like=(name_a, a))
    if b.shape[:-2] != a.shape[:-2] or b.shape[-1] != a.shape[-1]:
        raise ValueError(
            f"{name_b} must have shape [..., n, D] matching {name_a} {tuple(a.shape)}, got {tuple(b.shape)}"
        )
    return torch.promote_types(a.dtype, b.dtype)


def check_options(mask_self, normalizer, affinity_floor) -> float:
    """The floor of log A, once the options are checked."""
    checks.choice("mask_self", mask_self, MASKS)
    checks.choice("normalizer", normalizer, NORMALIZERS)
    if isinstance(affinity_floor, torch.Tensor):
        raise TypeError("affinity_floor must be a number, got a tensor")
    checks.number("affinity_floor", affinity_floor, torch.device("cpu"))
    if not 0 <= affinity_floor <= 1:
        raise ValueError(f"affinity_floor must be between 0 and 1, got {affinity_floor}")
    return math.log(affinity_floor) / 2 if affinity_floor > 0 else -math.inf


def check_temperatures(temperatures) -> None:
    """A sequence that is not empty."""
    if isinstance(temperatures, str) or not isinstance(temperatures, Sequence):
        raise TypeError(
            f"temperatures must be a sequence of numbers, got {type(temperatures).__name__}"
        )
    if not temperatures:
        raise ValueError("temperatures must not be empty")


def inverse_temperatures(temperatures, like: torch.Tensor) -> torch.Tensor:
    """``[K]`` in the accumulation dtype of `like`, on its device."""
    check_temperatures(temperatures)
    for value in temperatures:
        checks.number("temperatures", value, like.device, divisor=True)
    return torch.stack([inverse_scale(value, like) for value in temperatures])


def groups(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def nothing(negative: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape of `negative`, connected to all that could need a gradient."""
    return negative * 0 + sum(x.sum() * 0 for x in others)


def contrastive_force(
    positive: torch.Tensor,
    negative: torch.Tensor,
    temperature: float | torch.Tensor,
    *,
    mask_self: str = "sum",
    normalizer: str | None = None,
    affinity_floor: float = 0.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Force on each negative, towards the positives and away from the other negatives.

    ``force_j = sum_ik A_ji A_jk (positive_i - negative_k)`` over positives i and negatives k != j, where A is the root of the product of the
    row and the column softmax of ``-d / temperature`` over all N + M points, d the Euclidean distances.

    Args:
        positive, negative: ``[..., N, D]`` and ``[..., M, D]``, each leading index a group of its own.
        temperature: in units of distance; a number, or a 0-d tensor, which then gets a gradient.
        mask_self: "sum" leaves a point's pair with itself out of the sum only, "softmax" also out of both softmaxes.
        normalizer: None, or divide each group by ``sqrt(mean((d A)^2))`` over its (N + M)^2 pairs ("dist_affinity_rms"), or by
            ``sqrt(mean(force^2))`` ("force_rms"; a force of 0 stays 0).
        affinity_floor: lower bound of the product of the two softmaxes.

    Returns:
        ``[..., M, D]`` in the dtype of the inputs, differentiable once in positive, negative and temperature.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    dtype = points_dtype("positive", positive, "negative", negative)
    checks.number("temperature", temperature, negative.device, divisor=True)
    floor = check_options(mask_self, normalizer, affinity_floor)
    if backend is not None:
        dispatch.check_name(backend)
    if negative.numel() == 0 or positive.numel() == 0:
        return nothing(negative, positive, inverse_scale(temperature, negative)).to(dtype)
    if dispatch.is_eager(backend):
        options = {
            "mask_self": mask_self,
            "normalizer": normalizer,
            "affinity_floor": affinity_floor,
        }
        return force_reference.contrastive_force(positive, negative, temperature, **options).to(
            dtype
        )
    refuse_transforms(positive, negative, temperature)
    refuse_export(positive, negative, temperature)
    x = torch.cat([groups(negative).to(dtype), groups(positive).to(dtype)], 1)
    name = dispatch.select(backend, x.device, dtype)
    inverse = inverse_scale(temperature, x).reshape(1)
    force, *_ = Force.apply(
        x, inverse, negative.shape[-2], mask_self == "softmax", floor, normalizer == "dist_affinity_rms",
        normalizer == "force_rms", name,
    )  # fmt: skip
    force = force[0]
    if normalizer == "force_rms":
        force = force / force_reference.rms(force)
    return force.reshape(negative.shape).to(dtype)


def contrastive_force_loss(
    positive: torch.Tensor,
    negative: torch.Tensor,
    temperatures: tuple = (0.01, 0.02, 0.05, 0.1, 0.2),
    *,
    mask_self: str = "sum",
    normalizer: str | None = "dist_affinity_rms",
    scale: float | torch.Tensor | None = None,
    detach_scale: bool = False,
    affinity_floor: float = 0.0,
    reduction: str = "none",
    backend: str | None = None,
) -> torch.Tensor:
    """Squared step of each negative along the sum over the temperatures of `contrastive_force`.

    ``(negative - stopgrad(negative + sum_T force_T))^2`` after both sets are divided by `scale`. Gradients flow through
    ``negative / scale``: to negative and, through the scale, to both sets.

    Args:
        positive, negative: ``[..., N, D]`` and ``[..., M, D]``, each leading index a group of its own.
        temperatures: in units of `scale`, at least one.
        mask_self, normalizer, affinity_floor: as in `contrastive_force`.
        scale: None, the group's mean distance over all (N + M)^2 pairs, self pairs included; or given: a positive number or a tensor of
            such (not read: a scale of 0 counts as 1) that broadcasts to the leading dimensions, which then gets a gradient.
        detach_scale: take the scale as a constant.

    Returns:
        ``[..., M, D]`` elementwise with ``reduction="none"``, else a scalar; float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: naming the argument.
    """
    dtype = points_dtype("positive", positive, "negative", negative)
    floor = check_options(mask_self, normalizer, affinity_floor)
    checks.choice("detach_scale", detach_scale, (True, False))
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if backend is not None:
        dispatch.check_name(backend)
    x = torch.cat([groups(negative).to(dtype), groups(positive).to(dtype)], 1)
    inverse = inverse_temperatures(temperatures, x)
    lead = negative.shape[:-2]
    scale = _given_scale(scale, lead, inverse)
    if detach_scale and scale is not None:
        scale = scale.detach()
    if negative.numel() == 0 or positive.shape[-2] == 0:
        loss = nothing(negative, positive, *([] if scale is None else [scale])).to(inverse.dtype)
    elif dispatch.is_eager(backend):
        loss = force_reference.contrastive_force_loss(
            positive, negative, temperatures, mask_self=mask_self, normalizer=normalizer,
            scale=None if scale is None else scale.reshape(lead), detach_scale=detach_scale,
            affinity_floor=affinity_floor,
        )  # fmt: skip
    else:
        refuse_transforms(positive, negative, scale)
        refuse_export(positive, negative, scale)
        name = dispatch.select(backend, x.device, dtype)
        loss, *_ = ForceLoss.apply(
            x,
            scale,
            inverse,
            negative.shape[-2],
            mask_self == "softmax",
            floor,
            normalizer,
            not detach_scale,
            name,
        )
        loss = loss.reshape(negative.shape)
    return force_reference.reduce(loss, reduction)


def _given_scale(scale, lead, like: torch.Tensor) -> torch.Tensor | None:
    """``[G]`` in the dtype and on the device of `like`, or None."""
    if scale is None:
        return None
    if isinstance(scale, torch.Tensor):
        if not scale.is_floating_point():
            raise TypeError(f"scale must be a number or a floating-point tensor, got {scale.dtype}")
        if not checks.broadcastable(scale.shape, lead):
            raise ValueError(
                f"scale must be broadcastable to shape {tuple(lead)}, got {tuple(scale.shape)}"
            )
        if scale.device != like.device and (scale.dim() > 0 or scale.device.type != "cpu"):
            raise ValueError(f"scale must be on {like.device}, got {scale.device}")
        return scale.to(like.device, like.dtype).expand(lead).reshape(-1)
    checks.number("scale", scale, like.device, divisor=True)
    if scale < 0:
        raise ValueError(f"scale must be positive, got {scale}")
    return torch.full((math.prod(lead),), scale, dtype=like.dtype, device=like.device)
