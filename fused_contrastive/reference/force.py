"""The textbook eager force losses: dense, any device, any float dtype. The specification, and the baseline of every benchmark.

Each function has the signature of its fused counterpart in force.py, less ``backend``. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

import math

import torch

from ..dtypes import accumulation_dtype


def contrastive_force(
    positive, negative, temperature, *, mask_self="sum", normalizer=None, affinity_floor=0.0
):
    """Dense form: ``[..., M, D]`` in the accumulation dtype."""
    dtype = accumulation_dtype(torch.promote_types(positive.dtype, negative.dtype))
    points = torch.cat([negative, positive], -2).to(dtype)
    return _force(points, negative.shape[-2], temperature, mask_self, normalizer, affinity_floor)


def _force(points, M, temperature, mask_self, normalizer, affinity_floor):
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
    """Root mean square over the last two dimensions, kept; 1 where it is 0. Squares are taken of what is next to 1."""
    largest = x.detach().abs().amax((-2, -1), keepdim=True)
    unit = largest.masked_fill(largest == 0, 1.0)
    square = (x / unit).square().mean((-2, -1), keepdim=True)
    return square.masked_fill(square == 0, 1.0).sqrt() * unit


def contrastive_force_loss(
    positive, negative, temperatures=(0.01, 0.02, 0.05, 0.1, 0.2), *, mask_self="sum", normalizer="dist_affinity_rms",
    scale=None, detach_scale=False, affinity_floor=0.0, reduction="none",
):  # fmt: skip
    """Dense form, the temperature loop under no_grad."""
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


def reduce(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    return loss if reduction == "none" else getattr(loss, reduction)()


def drift_loss(
    gen, positive, negative=None, *, weight_gen=None, weight_positive=None, weight_negative=None,
    temperatures=(0.02, 0.05, 0.2),
):  # fmt: skip
    """Dense form of the published training code."""
    dtype = accumulation_dtype(gen.dtype)
    gen = gen.to(dtype)
    parts, weights = drift_columns(
        gen, positive, negative, weight_gen, weight_positive, weight_negative
    )
    n, S = gen.shape[1:]
    with torch.no_grad():
        y, w = torch.cat(parts, 1), torch.cat(weights, 1).unsqueeze(1)
        x, negatives = y[:, :n], n + (0 if negative is None else negative.shape[1])
        distance = torch.cdist(x, y).clamp_min(1e-4)
        scale = (distance * w).mean() / w.mean()
        s_in = (scale / math.sqrt(S)).clamp_min(1e-3)
        x, y, distance = x / s_in, y / s_in, distance / scale.clamp_min(1e-3)
        distance[:, :, :n] += 100 * torch.eye(n, dtype=dtype, device=gen.device)
        total, info = 0, {"scale": scale}
        for t in temperatures:
            s = -distance / t
            affinity = (s.log_softmax(2) + s.log_softmax(1)).exp().clamp_min(1e-6).sqrt() * w
            near, far = affinity[:, :, :negatives], affinity[:, :, negatives:]
            field = near.sum(2, keepdim=True) * (far @ y[:, negatives:])
            field = field - far.sum(2, keepdim=True) * (near @ y[:, :negatives])
            square = (field * field).mean()
            info[f"loss_{t}"] = square
            total = total + field / square.clamp_min(1e-8).sqrt()
        target = x + total
    return ((gen / s_in - target) ** 2).mean((1, 2)), info


def drift_columns(gen, positive, negative, weight_gen, weight_positive, weight_negative):
    """The sets ``gen, negative, positive`` and their weights ``[G, n]``, in the dtype of `gen`, absent ones left out."""
    sets = [(gen, weight_gen), (negative, weight_negative), (positive, weight_positive)]
    parts = [x.detach().to(gen.dtype) for x, _ in sets if x is not None]
    weights = [
        gen.new_ones(x.shape[:2]) if w is None else w.detach().to(gen.dtype)
        for x, w in sets
        if x is not None
    ]
    return parts, weights


@torch.no_grad()
def drift_field(gen, positive, temperature=0.05):
    """Dense form of the published toy notebook."""
    dtype = accumulation_dtype(gen.dtype)
    gen, positive = gen.to(dtype), positive.to(dtype)
    n = gen.shape[-2]
    columns = torch.cat([gen, positive], -2)
    kernel = (-torch.cdist(gen, columns) / temperature).exp()
    kernel.diagonal(0, -2, -1).fill_(0.0)
    product = kernel.sum(-1, keepdim=True) * kernel.sum(-2, keepdim=True)
    affinity = kernel / product.clamp_min(1e-12).sqrt()
    near, far = affinity[..., :n], affinity[..., n:]
    return near.sum(-1, keepdim=True) * (far @ positive) - far.sum(-1, keepdim=True) * (near @ gen)
