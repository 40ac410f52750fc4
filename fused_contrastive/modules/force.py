"""Modules of the force family."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks
from ..losses import drift, force
from ..losses._module import Loss, own_number, own_temperatures


class ContrastiveForceLoss(Loss):
    """Module form of `contrastive_force_loss`: ``ContrastiveForceLoss()(positive, negative)``."""

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
            backend=backend,
        )
        force.check_options(mask_self, normalizer, affinity_floor)
        checks.choice("detach_scale", detach_scale, (True, False))
        if scale is not None:
            own_number("scale", scale, divisor=True)

    def forward(self, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return force.contrastive_force_loss(positive, negative, **self.options)


class DriftLoss(nn.Module):
    """Module form of `drift_loss`: ``DriftLoss()(gen, positive, negative)``, with its weights as keyword arguments."""

    def __init__(self, temperatures=(0.02, 0.05, 0.2), *, backend=None):
        super().__init__()
        self.options = {"temperatures": own_temperatures(temperatures), "backend": backend}

    def forward(
        self,
        gen: torch.Tensor,
        positive: torch.Tensor,
        negative: torch.Tensor | None = None,
        **weights,
    ):
        return drift.drift_loss(gen, positive, negative, **weights, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
