"""Modules of the sigmoid family."""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import losses
from ..losses._module import Loss, own_number


class SigLipLoss(Loss):
    """Module form of `siglip_loss`: ``SigLipLoss()(image_features, text_features, logit_scale, logit_bias)``.

    With ``learnable=True`` the module owns both, as parameters ``log_logit_scale``, starting at log(`logit_scale`), and ``logit_bias``, and
    `forward` takes neither: ``SigLipLoss(10.0, -10.0, learnable=True)(image_features, text_features)``, the paper's start. `keys` and `weights`
    are keyword arguments of `forward`.
    """

    def __init__(
        self,
        logit_scale=None,
        logit_bias=None,
        *,
        reduction="mean",
        metrics=False,
        backend=None,
        learnable=False,
    ):
        super().__init__(reduction=reduction, metrics=metrics, backend=backend)
        for name, value in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
            if learnable != (value is not None):
                raise ValueError(f"{name} must be given exactly when learnable=True, got {value}")
            if learnable:
                own_number(name, value)
        if learnable:
            if logit_scale <= 0:
                raise ValueError(f"logit_scale must be positive to be learnable, got {logit_scale}")
            self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
            self.logit_bias = nn.Parameter(torch.tensor(float(logit_bias)))
        self.learnable = learnable

    def forward(
        self, image_features: torch.Tensor, text_features: torch.Tensor, logit_scale=None, logit_bias=None, *, keys=None,
        weights=None,
    ):  # fmt: skip
        for name, value in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
            if self.learnable == (value is not None):
                raise ValueError(
                    f"{name} must be passed to forward exactly when the module does not learn it"
                )
        if self.learnable:
            logit_scale, logit_bias = self.log_logit_scale.exp(), self.logit_bias
        tensors = {"keys": keys, "weights": weights}
        return losses.siglip_loss(
            image_features, text_features, logit_scale, logit_bias, **tensors, **self.options
        )
