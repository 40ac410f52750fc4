"""This is the force loss in eager PyTorch as a careful user writes it.

It is the dense baseline of the benchmark. It has no loop over points, one distance matrix, and one
log-sum-exp for rows and columns alike. The temperatures run under no_grad and in place.
"""

from __future__ import annotations

import torch

TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""At these five temperatures the dense float32 form is finite."""


def contrastive_force_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Returns the mean over ``[..., M, D]`` of the force loss with these temperatures.

    `fused_contrastive.contrastive_force_loss` computes the same.
    """
    M = negative.shape[-2]
    points = torch.cat([negative, positive], -2)
    distance = torch.cdist(points, points)
    scale = distance.mean((-2, -1), keepdim=True)
    rows = negative / scale
    with torch.no_grad():
        x, distance, target = points / scale, distance / scale, rows.clone()
        for temperature in TEMPERATURES:
            affinity = distance / -temperature
            lse = affinity.logsumexp(-1, keepdim=True) / 2
            affinity.sub_(lse).sub_(lse.mT).exp_().diagonal(0, -2, -1).zero_()
            norm = (distance * affinity).square_().mean((-2, -1), keepdim=True).sqrt_()
            near, far = affinity[..., :M, :M], affinity[..., :M, M:]
            force = near.sum(-1, keepdim=True) * (far @ x[..., M:, :])
            target += (force - far.sum(-1, keepdim=True) * (near @ x[..., :M, :])) / norm
    return (rows - target).square().mean()
