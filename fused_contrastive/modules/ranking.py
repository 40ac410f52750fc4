"""Modules of the ranking and distillation losses."""

from __future__ import annotations

import torch

from .. import losses
from ..losses._arguments import check_options
from ..losses._module import Loss, TemperatureLoss
from ..losses.ranking import check_directions


class MultipleNegativesRankingLoss(TemperatureLoss):
    """Module form of `multiple_negatives_ranking_loss`: ``MultipleNegativesRankingLoss(temperature)(query, positive_key, negative_keys)``,
    with `keys` and `weights` as keyword arguments."""

    def __init__(
        self, temperature=0.05, *, directions=("query_to_doc",), partition="joint", normalize=True, hardness=0.0,
        hardness_mode="all_negatives", reduction="mean", metrics=False, backend=None, learnable=False,
    ):  # fmt: skip
        check_directions(directions, partition, hardness_mode)
        check_options(0.0, 0.0, hardness)
        super().__init__(
            temperature, learnable, directions=directions, partition=partition, normalize=normalize, hardness=hardness,
            hardness_mode=hardness_mode, reduction=reduction, metrics=metrics, backend=backend,
        )  # fmt: skip

    def forward(
        self, query: torch.Tensor, positive_key: torch.Tensor, negative_keys: torch.Tensor | None = None, *, keys=None,
        weights=None,
    ):  # fmt: skip
        return losses.multiple_negatives_ranking_loss(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            keys=keys,
            weights=weights,
            **self.options,
        )


class DistillClipLoss(Loss):
    """Module form of `distill_clip_loss`, all of whose tensors go to `forward`."""

    def __init__(self, *, reduction="mean", backend=None):
        super().__init__(reduction=reduction, backend=backend)

    def forward(
        self, image_features, text_features, logit_scale, teacher_image_features, teacher_text_features,
        teacher_logit_scale, *, weights=None,
    ):  # fmt: skip
        return losses.distill_clip_loss(
            image_features, text_features, logit_scale, teacher_image_features, teacher_text_features, teacher_logit_scale,
            weights=weights, **self.options,
        )  # fmt: skip
