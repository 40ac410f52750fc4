"""Modules of the losses with one positive per row."""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import checks, losses
from ..losses._arguments import check_options
from ..losses._module import Loss, TemperatureLoss, own_number


class NTXentLoss(TemperatureLoss):
    """Module form of `nt_xent_loss`: ``NTXentLoss(temperature)(z1, z2)``, with `keys`, `weights` and `bias` as keyword arguments."""

    def __init__(
        self, temperature=0.5, *, normalize=True, label_smoothing=0.0, margin=0.0, hardness=0.0, tau_plus=0.0,
        reduction="mean", metrics=False, backend=None, learnable=False,
    ):  # fmt: skip
        options = check_options(label_smoothing, margin, hardness, tau_plus)
        super().__init__(
            temperature, learnable, normalize=normalize, **options._asdict(), reduction=reduction, metrics=metrics,
            backend=backend,
        )  # fmt: skip

    def forward(self, z1: torch.Tensor, z2: torch.Tensor, *, keys=None, weights=None, bias=None):
        tensors = {"keys": keys, "weights": weights, "bias": bias}
        return losses.nt_xent_loss(z1, z2, self.temperature, **tensors, **self.options)


class InfoNCELoss(TemperatureLoss):
    """Module form of `info_nce_loss`: ``InfoNCELoss(temperature)(query, positive_key, negative_keys)``, with `keys`, `weights` and `bias` as
    keyword arguments."""

    def __init__(
        self, temperature=0.1, *, negative_mode="unpaired", normalize=True, symmetric=False, label_smoothing=0.0, margin=0.0,
        hardness=0.0, tau_plus=0.0, reduction="mean", metrics=False, backend=None, learnable=False,
    ):  # fmt: skip
        checks.choice("negative_mode", negative_mode, ("unpaired", "paired", "in_batch"))
        options = check_options(label_smoothing, margin, hardness, tau_plus)
        super().__init__(
            temperature, learnable, negative_mode=negative_mode, normalize=normalize, symmetric=symmetric,
            **options._asdict(), reduction=reduction, metrics=metrics, backend=backend,
        )  # fmt: skip

    def forward(
        self, query: torch.Tensor, positive_key: torch.Tensor, negative_keys: torch.Tensor | None = None, *, keys=None,
        weights=None, bias=None,
    ):  # fmt: skip
        tensors = {"keys": keys, "weights": weights, "bias": bias}
        return losses.info_nce_loss(
            query, positive_key, negative_keys, self.temperature, **tensors, **self.options
        )


class ClipLoss(Loss):
    """Module form of `clip_loss`: ``ClipLoss()(image_features, text_features, logit_scale)``.

    With ``learnable=True`` the module owns the scale, as parameter ``log_logit_scale`` starting at log(`logit_scale`), and
    `forward` takes none: ``ClipLoss(1 / 0.07, learnable=True)(image_features, text_features)``. `keys`, `weights` and `bias` are keyword
    arguments of `forward`.
    """

    def __init__(
        self, logit_scale=None, *, label_smoothing=0.0, margin=0.0, hardness=0.0, reduction="mean", metrics=False,
        backend=None, learnable=False,
    ):  # fmt: skip
        check_options(label_smoothing, margin, hardness)
        super().__init__(
            label_smoothing=label_smoothing, margin=margin, hardness=hardness, reduction=reduction, metrics=metrics,
            backend=backend,
        )  # fmt: skip
        if learnable != (logit_scale is not None):
            raise ValueError(
                f"logit_scale must be given exactly when learnable=True, got {logit_scale}"
            )
        if learnable:
            own_number("logit_scale", logit_scale)
            if logit_scale <= 0:
                raise ValueError(f"logit_scale must be positive to be learnable, got {logit_scale}")
            self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        self.learnable = learnable

    def forward(
        self, image_features: torch.Tensor, text_features: torch.Tensor, logit_scale=None, logit_bias=None, *, keys=None,
        weights=None, bias=None,
    ):  # fmt: skip
        if self.learnable == (logit_scale is not None):
            raise ValueError(
                "logit_scale must be passed to forward exactly when the module does not learn it"
            )
        scale = self.log_logit_scale.exp() if self.learnable else logit_scale
        tensors = {"keys": keys, "weights": weights, "bias": bias}
        return losses.clip_loss(
            image_features, text_features, scale, logit_bias, **tensors, **self.options
        )


class NPairsLoss(Loss):
    """Module form of `n_pairs_loss`: ``NPairsLoss()(anchors, positives)``, with `keys`, `weights` and `bias` as keyword arguments."""

    def __init__(
        self,
        *,
        normalize=True,
        label_smoothing=0.0,
        margin=0.0,
        reduction="mean",
        metrics=False,
        backend=None,
    ):
        check_options(label_smoothing, margin)
        super().__init__(
            normalize=normalize, label_smoothing=label_smoothing, margin=margin, reduction=reduction, metrics=metrics,
            backend=backend,
        )  # fmt: skip

    def forward(
        self, anchors: torch.Tensor, positives: torch.Tensor, target: torch.Tensor | None = None, *, keys=None,
        weights=None, bias=None,
    ):  # fmt: skip
        tensors = {"keys": keys, "weights": weights, "bias": bias}
        return losses.n_pairs_loss(anchors, positives, target, **tensors, **self.options)


class CPCLoss(Loss):
    """Module form of `cpc_loss`: ``CPCLoss()(predictions, latents)`` returns ``(loss, accuracy)``; `keys` and `weights` are keyword
    arguments."""

    def __init__(self, *, reduction="mean", backend=None):
        super().__init__(reduction=reduction, backend=backend)

    def forward(self, predictions: torch.Tensor, latents: torch.Tensor, *, keys=None, weights=None):
        return losses.cpc_loss(predictions, latents, keys=keys, weights=weights, **self.options)
