"""The dense form of the force losses.

Half-precision inputs are computed in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..dtypes import accumulation_dtype
from ._reduction import reduce


def contrastive_force(
    positive, negative, temperature, *, mask_self="sum", normalizer=None, affinity_floor=0.0
):
    """The force on each negative, ``[..., M, D]`` in the accumulation dtype.

    positive is ``[..., N, D]`` and negative ``[..., M, D]``.
    """
    dtype = accumulation_dtype(torch.promote_types(positive.dtype, negative.dtype))
    points = torch.cat([negative, positive], -2).to(dtype)
    return _force(points, negative.shape[-2], temperature, mask_self, normalizer, affinity_floor)


def _force(points, M, temperature, mask_self, normalizer, affinity_floor):
    """The force ``[..., M, D]`` on the first M points, the negatives, of ``[..., P, D]``."""
    P = points.shape[-2]
    itself = torch.eye(P, dtype=torch.bool, device=points.device)
    distance = torch.cdist(points, points)
    s = -distance / temperature
    if mask_self == "softmax":
        s = s.masked_fill(itself, -math.inf)
    log_product = s.log_softmax(-1) + s.log_softmax(-2)
    if affinity_floor > 0:
        log_product = log_product.clamp_min(math.log(affinity_floor))
    affinity = (log_product.masked_fill(itself, -math.inf) / 2).exp()
    rows = affinity[..., :M, :]
    to_positive, to_negative = rows[..., M:], rows[..., :M]
    force = to_negative.sum(-1, keepdim=True) * (to_positive @ points[..., M:, :])
    force = force - to_positive.sum(-1, keepdim=True) * (to_negative @ points[..., :M, :])
    if normalizer == "dist_affinity_rms":
        square = (distance * affinity).square().mean((-2, -1), keepdim=True)
        one_point = (distance == 0).all(-1, keepdim=True).all(-2, keepdim=True)
        return force / square.masked_fill(one_point, 1.0).sqrt()
    return force / rms(force) if normalizer == "force_rms" else force


def rms(x: torch.Tensor) -> torch.Tensor:
    """The root mean square over the last two dimensions, kept, or 1 where it is 0.

    The squares are taken of numbers next to 1. x is ``[..., M, D]``.
    """
    largest = x.detach().abs().amax((-2, -1), keepdim=True)
    unit = largest.masked_fill(largest == 0, 1.0)
    square = (x / unit).square().mean((-2, -1), keepdim=True)
    return square.masked_fill(square == 0, 1.0).sqrt() * unit


def contrastive_force_loss(
    positive,
    negative,
    temperatures=(0.01, 0.02, 0.05, 0.1, 0.2),
    *,
    mask_self="sum",
    normalizer: Any = "dist_affinity_rms",
    scale=None,
    detach_scale=False,
    affinity_floor=0.0,
    reduction="none",
):
    """The loss of positive ``[..., N, D]`` and negative ``[..., M, D]``.

    The loop over the temperatures runs under no_grad.
    """
    dtype = accumulation_dtype(torch.promote_types(positive.dtype, negative.dtype))
    M = negative.shape[-2]
    points = torch.cat([negative, positive], -2).to(dtype)
    if scale is None:
        scale = torch.cdist(points, points).mean((-2, -1))
        scale = scale.masked_fill(scale == 0, 1.0)
    scale = torch.as_tensor(scale, dtype=dtype, device=points.device)[..., None, None]
    if detach_scale:
        scale = scale.detach()
    points = points / scale
    rows = points[..., :M, :]
    with torch.no_grad():
        target = rows + sum(
            _force(points, M, t, mask_self, normalizer, affinity_floor) for t in temperatures
        )
    return reduce((rows - target) ** 2, reduction)
