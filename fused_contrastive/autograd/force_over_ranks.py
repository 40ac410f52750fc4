"""The loss of a step along the force, over the points of the ranks of a process group."""

from __future__ import annotations

from torch import Tensor

from ..distributed.groups import Ranks
from ..ops import force_over_ranks as ops
from ..problem import MaybeNone
from .force import ForceOptions
from .over_ranks import described, register, sum_over_ranks


def remember(ctx, inputs, output):
    """Keep what the backward op reads."""
    x, ctx.ranks = inputs
    ctx.save_for_backward(x, output[1])


def backward(ctx, g, _):
    """The gradient of the mean distance."""
    x, sizes = ctx.saved_tensors
    return ops.mean_distance_over_ranks_backward(g.contiguous(), x, sizes, ctx.ranks), None


register("mean_distance_over_ranks", backward, remember)


def force_loss(
    x: Tensor,  # [G, P, D]
    scale: Tensor | MaybeNone,  # [G]; None: the mean distance over all ranks
    inverse_temperatures: Tensor,  # [K]
    options: ForceOptions,
    attached: bool,
    ranks: Ranks,
) -> Tensor:
    """`autograd.force.force_loss` over the points of all ranks, of this rank's rows."""
    if scale is None:
        points = x if attached else x.detach()
        scale, _ = ops.mean_distance_over_ranks(points, described(ranks, points))
    fixed, rows = scale.detach(), x[:, : options.rows].to(scale.dtype)
    force, peak, sizes = ops.force_over_ranks(
        x.detach(),
        inverse_temperatures.detach(),
        fixed,
        options.rows,
        options.mask,
        options.floor,
        options.normalizer == "dist_affinity_rms",
        options.normalizer == "force_rms",
        ranks.encode(),
    )
    # A scale of 0 counts as 1, and keeps its gradient.
    scale = (scale + (fixed == 0).to(scale.dtype))[:, None, None]
    if options.normalizer == "force_rms":
        largest = peak.masked_fill(peak == 0, 1.0)[:, :, None, None]
        total = sum_over_ranks((force / largest).square().sum((2, 3)), ranks.encode())
        square = total / (sizes[:, 0].sum() * x.shape[2]).clamp_min(1)
        rms = square.masked_fill(square == 0, 1.0).sqrt()[:, :, None, None] * largest
        force = (force / rms).sum(0)
    else:
        force = force[0] / scale.detach()
    place = rows / scale
    # The difference is 0, and only its gradient counts.
    return ((place - place.detach()) - force).square()
