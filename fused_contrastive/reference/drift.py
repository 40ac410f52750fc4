"""The dense form of the drifting losses.

Half-precision inputs are computed in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..dtypes import accumulation_dtype


def drift_loss(
    gen,
    positive,
    negative=None,
    *,
    weight_gen=None,
    weight_positive=None,
    weight_negative=None,
    temperatures=(0.02, 0.05, 0.2),
):
    """The loss of the published training code, of sets ``[G, n, D]`` with each its own n."""
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
    """The sets gen, negative and positive, and their weights, in the dtype of `gen`.

    Sets ``[G, n, D]`` that are None are left out. Weights are ``[G, n]``, and 1 where they are
    None.
    """
    sets = [(gen, weight_gen), (negative, weight_negative), (positive, weight_positive)]
    parts = [x.detach().to(gen.dtype) for x, _ in sets if x is not None]
    weights = [
        gen.new_ones(x.shape[:2]) if w is None else w.detach().to(gen.dtype)
        for x, w in sets
        if x is not None
    ]
    return parts, weights


@torch.no_grad()
def drift_field(gen, positive, temperature: Any = 0.05):
    """The drift of the published toy notebook.

    gen is ``[..., n, D]`` and positive ``[..., N, D]``.
    """
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
