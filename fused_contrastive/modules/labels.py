"""Modules of the losses with several positives per row, and of those that leave the positive out of the denominator."""

from __future__ import annotations

import torch

from .. import checks, losses
from ..losses._module import TemperatureLoss, own_number


class SupConLoss(TemperatureLoss):
    """Module form of `sup_con_loss`: ``SupConLoss(temperature)(features, labels)``, with its weights as keyword arguments."""

    def __init__(
        self, temperature=0.1, *, positives="out", contrast_mode="all", normalize=True, skip_unmatched=False,
        reduction="mean", metrics=False, backend=None, learnable=False,
    ):  # fmt: skip
        checks.choice("positives", positives, ("out", "in", "pairs"))
        checks.choice("contrast_mode", contrast_mode, ("all", "one"))
        super().__init__(
            temperature, learnable, positives=positives, contrast_mode=contrast_mode, normalize=normalize,
            skip_unmatched=skip_unmatched, reduction=reduction, metrics=metrics, backend=backend,
        )  # fmt: skip

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor | None = None, *, positive_weights: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ):  # fmt: skip
        return losses.sup_con_loss(
            features,
            labels,
            self.temperature,
            positive_weights=positive_weights,
            weights=weights,
            **self.options,
        )


class DCLLoss(TemperatureLoss):
    """Module form of `dcl_loss`: ``DCLLoss(temperature)(z1, z2)``, with `keys` and `weights` as keyword arguments."""

    def __init__(
        self, temperature=0.1, *, normalize=True, reduction="mean", metrics=False, backend=None,
        learnable=False,
    ):  # fmt: skip
        super().__init__(
            temperature, learnable, normalize=normalize, reduction=reduction, metrics=metrics,
            backend=backend,
        )  # fmt: skip

    def forward(self, z1: torch.Tensor, z2: torch.Tensor, *, keys=None, weights=None):
        return losses.dcl_loss(z1, z2, self.temperature, keys=keys, weights=weights, **self.options)


class DCLWLoss(TemperatureLoss):
    """Module form of `dclw_loss`: ``DCLWLoss(temperature, sigma)(z1, z2)``, with `keys` and `weights` as keyword arguments."""

    def __init__(
        self, temperature=0.1, sigma=0.5, *, normalize=True, reduction="mean", metrics=False,
        backend=None, learnable=False,
    ):  # fmt: skip
        own_number("sigma", sigma, divisor=True)
        super().__init__(
            temperature, learnable, sigma=sigma, normalize=normalize, reduction=reduction,
            metrics=metrics, backend=backend,
        )  # fmt: skip

    def forward(self, z1: torch.Tensor, z2: torch.Tensor, *, keys=None, weights=None):
        return losses.dclw_loss(
            z1, z2, self.temperature, keys=keys, weights=weights, **self.options
        )
