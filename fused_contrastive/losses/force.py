"""The force between positives and negatives, and the loss that moves the negatives along it.

Distances are computed from differences in float32, or in float64 for float64 inputs. No matrix
``[N + M, N + M]`` is stored. Every exponential is taken relative to the largest one of its row,
so forces are finite where a dense float32 softmax underflows. Derivations: docs/maths.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from ..autograd import force as autograd
from ..autograd._formulas import refuse_export, refuse_transforms
from ..autograd.force_over_ranks import force_loss as loss_over_ranks
from ..autograd.keyed_sums import rows_of_all_ranks
from ..backends import dispatch
from ..distributed.groups import Ranks, agree
from ..reference import force as reference
from ..scalars import inverse_scale
from ._arguments import asks_for_eager, check_temperature
from ._module import Loss, own_number, own_temperatures
from ._over_ranks import NOT_GIVEN, over_ranks
from ._points import inverse_temperatures, points_dtype, stacked
from ._reduction import reduce

MASKS = ("sum", "softmax")
NORMALIZERS = (None, "dist_affinity_rms", "force_rms")


@over_ranks
def contrastive_force(
    positive: Tensor,
    negative: Tensor,
    temperature: float | Tensor,
    *,
    mask_self: str = "sum",
    normalizer: str | None = None,
    affinity_floor: float = 0.0,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Force on each negative, towards the positives and away from the other negatives.

    The force on negative j is ``sum_ik A_ji A_jk (positive_i - negative_k)`` over positives i and
    negatives k != j. A is the root of the product of the row softmax and the column softmax of
    ``-d / temperature`` over all N + M points. Here d are the Euclidean distances.

    Args:
        positive, negative: ``[..., N, D]`` and ``[..., M, D]``. Each leading index is a group of
            its own.
        temperature: in units of distance; a number, or a 0-d tensor, which then gets a gradient.
        mask_self: "sum" leaves a point's pair with itself out of the sum only, "softmax" also out
            of both softmaxes.
        normalizer: what each group's force is divided by. None is 1. "dist_affinity_rms" is
            ``sqrt(mean((d A)^2))`` over the group's (N + M)^2 pairs. "force_rms" is
            ``sqrt(mean(force^2))``, and a force of 0 stays 0.
        affinity_floor: lower bound of the product of the two softmaxes.
        group, strategy: the ranks that share the points; see `fused_contrastive.losses`. Each rank
            passes its own positives and negatives, and gets the forces on its own negatives. The
            points of all ranks are gathered, and every rank computes the forces on all negatives.
            So there is no strategy "ring". `contrastive_force_loss` shares its work.

    Returns:
        ``[..., M, D]`` in the dtype of the inputs, differentiable once in positive, negative and
        temperature.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.

    Example:
        The negative at the origin is pulled to the right and pushed down.

        >>> import torch
        >>> from fused_contrastive import contrastive_force
        >>> positive = torch.tensor([[1.0, 0.0]])
        >>> negative = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        >>> force = contrastive_force(positive, negative, 0.5, normalizer="force_rms")
        >>> force[0].sign()
        tensor([ 1., -1.])
        >>> force.square().mean().sqrt().round(decimals=4)
        tensor(1.)
    """
    dtype = points_dtype("positive", positive, "negative", negative)
    check_temperature(temperature, negative.device)
    floor = check_options(mask_self, normalizer, affinity_floor)
    eager, own = asks_for_eager(backend, group), slice(None)
    if group is not None:
        checks.choice("strategy", group.strategy, ("auto", "gather"))
        positive, _ = _of_all_ranks(positive, group)
        negative, own = _of_all_ranks(negative, group)
    if negative.numel() == 0 or positive.numel() == 0:
        force = _nothing(negative, positive, inverse_scale(temperature, negative)).to(dtype)
        return force[..., own, :]
    if eager:
        force = reference.contrastive_force(
            positive,
            negative,
            temperature,
            mask_self=mask_self,
            normalizer=normalizer,
            affinity_floor=affinity_floor,
        )
        return force.to(dtype)
    refuse_transforms(positive, negative, temperature)
    refuse_export(positive, negative, temperature)
    x = stacked(negative, positive, dtype)
    name = dispatch.select(backend, x.device, dtype)
    options = autograd.ForceOptions(
        negative.shape[-2], mask=mask_self == "softmax", floor=floor, normalizer=normalizer
    )
    force = autograd.force(x, inverse_scale(temperature, x).reshape(1), options, name)
    return force.reshape(negative.shape).to(dtype)[..., own, :]


@over_ranks
def contrastive_force_loss(
    positive: Tensor,
    negative: Tensor,
    temperatures: tuple = (0.01, 0.02, 0.05, 0.1, 0.2),
    *,
    mask_self: str = "sum",
    normalizer: str | None = "dist_affinity_rms",
    scale: float | Tensor | None = None,
    detach_scale: bool = False,
    affinity_floor: float = 0.0,
    reduction: str = "none",
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Squared step of each negative along the sum over the temperatures of `contrastive_force`.

    The loss is ``(negative - stopgrad(negative + sum_T force_T))^2``, after both sets are divided
    by `scale`. By default it is elementwise: pass ``reduction="mean"`` for a scalar. Gradients flow
    through ``negative / scale``: to negative and, through the scale, to both sets.

    Args:
        positive, negative: ``[..., N, D]`` and ``[..., M, D]``. Each leading index is a group of
            its own.
        temperatures: in units of `scale`, at least one.
        mask_self, normalizer, affinity_floor: as in `contrastive_force`.
        scale: None is the group's mean distance over all (N + M)^2 pairs, self pairs included.
            Otherwise it is a positive number, or a tensor of such numbers that broadcasts to the
            leading dimensions and then gets a gradient. A tensor's values are not read; a scale of
            0 counts as 1.
        detach_scale: take the scale as a constant.
        group, strategy: the ranks whose points are one set, and how they are exchanged. Each rank
            passes its own points of every group, and gets the loss of its own negatives. The loss
            is then computed in torch operations, whatever `backend` is.

    Returns:
        ``[..., M, D]`` elementwise with ``reduction="none"``, else a scalar; float32, or float64
        for float64 inputs.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.

    Example:
        >>> import torch
        >>> from fused_contrastive import contrastive_force_loss
        >>> positive = torch.tensor([[1.0, 0.0]])
        >>> negative = torch.tensor([[0.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> loss = contrastive_force_loss(positive, negative, (0.5,), detach_scale=True)
        >>> loss.shape
        torch.Size([2, 2])
        >>> loss.sum().backward()

        A step against the gradient takes the origin towards the positive.

        >>> (-negative.grad[0]).sign()
        tensor([ 1., -1.])
    """
    dtype = points_dtype("positive", positive, "negative", negative)
    floor = check_options(mask_self, normalizer, affinity_floor)
    checks.choice("detach_scale", detach_scale, (True, False))
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    eager = asks_for_eager(backend, group)
    x = stacked(negative, positive, dtype)
    inverse = inverse_temperatures(temperatures, x)
    lead = negative.shape[:-2]
    scale = _given_scale(scale, lead, inverse)
    if detach_scale and scale is not None:
        scale = scale.detach()
    if group is not None:
        refuse_transforms(positive, negative, scale)
        refuse_export(positive, negative, scale)
        dispatch.select(backend, x.device, dtype)
        options = autograd.ForceOptions(
            negative.shape[-2], mask=mask_self == "softmax", floor=floor, normalizer=normalizer
        )
        attached = not detach_scale
        loss = loss_over_ranks(x, scale, inverse, options, attached=attached, ranks=group)
        loss = loss.reshape(negative.shape)
    elif negative.numel() == 0 or positive.shape[-2] == 0:
        others = [positive] if scale is None else [positive, scale]
        loss = _nothing(negative, *others).to(inverse.dtype)
    elif eager:
        loss = reference.contrastive_force_loss(
            positive,
            negative,
            temperatures,
            mask_self=mask_self,
            normalizer=normalizer,
            scale=None if scale is None else scale.reshape(lead),
            detach_scale=detach_scale,
            affinity_floor=affinity_floor,
        )
    else:
        refuse_transforms(positive, negative, scale)
        refuse_export(positive, negative, scale)
        name = dispatch.select(backend, x.device, dtype)
        options = autograd.ForceOptions(
            negative.shape[-2], mask=mask_self == "softmax", floor=floor, normalizer=normalizer
        )
        loss = autograd.force_loss(x, scale, inverse, options, not detach_scale, name)
        loss = loss.reshape(negative.shape)
    return reduce(loss, reduction, group=group)


def check_options(mask_self, normalizer, affinity_floor) -> float:
    """The floor of log A, once the options are checked.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    checks.choice("mask_self", mask_self, MASKS)
    checks.choice("normalizer", normalizer, NORMALIZERS)
    if isinstance(affinity_floor, Tensor):
        raise TypeError("affinity_floor must be a number, got a tensor")
    checks.number("affinity_floor", affinity_floor, torch.device("cpu"))
    if not 0 <= affinity_floor <= 1:
        raise ValueError(f"affinity_floor must be between 0 and 1, got {affinity_floor}")
    return math.log(affinity_floor) / 2 if affinity_floor > 0 else -math.inf


def _of_all_ranks(points: Tensor, group: Ranks) -> tuple[Tensor, slice]:
    """The points ``[..., n, D]`` of all ranks in rank order, and where this rank's own are."""
    *lead, n, D = points.shape
    sizes = [m for m, _ in agree(group, n, 0, "points of all ranks")]
    rows, total = points.movedim(-2, 0).reshape(n, math.prod(lead) * D), sum(sizes)
    everyone, _ = rows_of_all_ranks(rows, total, "points", group)
    start = sum(sizes[: group.rank])
    return everyone.view(total, *lead, D).movedim(0, -2), slice(start, start + n)


def _nothing(negative: Tensor, *others: Tensor) -> Tensor:
    """Zeros of the shape of `negative`, connected to all that could need a gradient."""
    return negative * 0 + sum(x.sum() * 0 for x in others)


def _given_scale(scale: float | Tensor | None, lead: torch.Size, like: Tensor) -> Tensor | None:
    """``[G]`` in the dtype and on the device of `like`, or None where no scale is given.

    Args:
        scale: a number, or a tensor that broadcasts to `lead`, the leading dimensions.
    """
    if scale is None:
        return None
    if isinstance(scale, Tensor):
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


class ContrastiveForceLoss(Loss):
    """Module form of `contrastive_force_loss`: ``ContrastiveForceLoss()(positive, negative)``.

    Example:
        >>> import torch
        >>> from fused_contrastive import ContrastiveForceLoss
        >>> loss = ContrastiveForceLoss((0.1, 0.2), reduction="mean")
        >>> positive, negative = torch.eye(3), torch.zeros(4, 3, requires_grad=True)
        >>> loss(positive, negative).backward()
        >>> negative.grad.shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        temperatures=(0.01, 0.02, 0.05, 0.1, 0.2),
        *,
        mask_self="sum",
        normalizer="dist_affinity_rms",
        scale=None,
        detach_scale=False,
        affinity_floor=0.0,
        reduction="none",
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
    ):
        super().__init__(
            temperatures=own_temperatures(temperatures),
            mask_self=mask_self,
            normalizer=normalizer,
            scale=scale,
            detach_scale=detach_scale,
            affinity_floor=affinity_floor,
            reduction=reduction,
            group=group,
            strategy=strategy,
            backend=backend,
        )
        check_options(mask_self, normalizer, affinity_floor)
        checks.choice("detach_scale", detach_scale, (True, False))
        if scale is not None:
            own_number("scale", scale, divisor=True)

    def forward(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of positive ``[..., N, D]`` and negative ``[..., M, D]``."""
        return contrastive_force_loss(positive, negative, **self.options)
