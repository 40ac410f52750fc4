"""HobbitLong/SupContrast, which is no package.

``from fused_contrastive.integrations.supcontrast import SupConLoss`` replaces its ``losses.py``.
Every option streams; a `mask` is an ``[N, N]`` input, read as it is.
"""

from __future__ import annotations

import torch
from torch import nn

from ..checks import is_integer
from ..losses.sup_con import sup_con_loss
from ._classes import absent

__all__ = ["SupConLoss"]

__getattr__ = absent(__name__)

# The terms of a row are not divided by a sum of weights below this.
SMALL = 1e-6


class SupConLoss(nn.Module):
    """Supervised contrastive loss, as in its authors' code.

    It is eq. 2 of Khosla et al. 2020 (arXiv:2004.11362): ``temperature / base_temperature`` times
    the mean over rows, where rows without positives count as 0.

    Args of `forward`:
        features: ``[N, V, ...]``, V views of each sample, normalised by the caller; trailing
            dimensions are flattened.
        labels: ``[N]`` integers. Without labels and mask, every sample is its own class.
        mask: ``[N, N]`` non-negative weights of sample j as a positive of sample i.

    Raises:
        ValueError: features have fewer than three dimensions; labels and mask are both given; the
            number of labels is not N; `contrast_mode` is neither "all" (every view's rows are
            anchors) nor "one" (the first view's).
    """

    def __init__(self, temperature=0.07, contrast_mode="all", base_temperature=0.07):
        super().__init__()
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature

    def forward(self, features, labels=None, mask=None):
        if features.dim() < 3:
            raise ValueError(
                "features must have shape [N, V, ...], at least 3 dimensions, "
                f"got {tuple(features.shape)}"
            )
        if labels is not None and mask is not None:
            raise ValueError("labels and mask must not both be given")
        if labels is not None:
            labels = labels.contiguous().view(-1).to(features.device)
            if len(labels) != len(features):
                raise ValueError(
                    f"labels must be {len(features)}, one for each of features, got {len(labels)}"
                )
            if not is_integer(labels):
                labels = labels.unique(return_inverse=True)[1]
        if self.contrast_mode not in ("all", "one"):
            raise ValueError(f"contrast_mode must be 'all' or 'one', got {self.contrast_mode!r}")
        if mask is not None:
            mask = mask.to(features.device, torch.promote_types(features.dtype, torch.float32))
        loss = sup_con_loss(
            features.flatten(2),
            labels,
            self.temperature,
            positive_weights=mask,
            contrast_mode=self.contrast_mode,
            normalize=False,
            reduction="mean" if mask is None else "none",
        )
        if mask is not None:
            views = features.shape[1]
            of_others = mask.tril(-1).sum(1) + mask.triu(1).sum(1)
            total = views * of_others + (views - 1) * mask.diagonal()
            loss = loss.mean(1) if loss.dim() == 2 else loss
            loss = (loss * torch.where(total < SMALL, total, 1.0)).mean()
        return (self.temperature / self.base_temperature) * loss
