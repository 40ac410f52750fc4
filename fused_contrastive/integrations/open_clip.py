"""open_clip: ``from fused_contrastive.integrations.open_clip import ClipLoss, SigLipLoss``.

Every option streams. Over several processes both losses compute each pair of shards once (see
docs/many_gpus.md). Values and gradients of features are open_clip's for every `dist_impl` and
all options but one: without `gather_with_grad`, `local_loss` leaves out a part of the gradient, so
open_clip's own gather runs. Without `gather_with_grad` the features' gradients are one W-th of
those of the global loss, as in open_clip, for W processes. The gradients of a scale are shares:
their mean over the processes, which DistributedDataParallel takes, is open_clip's.

`cache_labels` has nothing to cache. `CoCaLoss` is open_clip's with this contrastive term.
Distillation needs the logits of two models at once, which `ClipLoss.get_logits` still returns; it
has no streaming form here. A scale or bias of several elements falls back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..losses._comparison import Comparison
from ..losses.clip import clip_loss
from ..losses.siglip import siglip_loss
from ..problem import Candidates
from ..scalars import as_scalar
from ._common import (
    MeanOfRanks,
    ScaledGradient,
    falls_back,
    in_dtype_of,
    mismatch,
    number,
    package,
    world,
)

peer = package("open_clip.loss", "open_clip_torch")

__all__ = ["ClipLoss", "CoCaLoss", "SigLipLoss"]


def reason_against(image_features, text_features, logit_scale, logit_bias) -> str | None:
    """Why these do not stream; None: they do."""
    reason = mismatch(image_features, text_features)
    if reason is None and image_features.shape != text_features.shape:
        reason = "image_features and text_features of different lengths"
    if reason is None and number(logit_scale, image_features) is None:
        reason = f"logit_scale={logit_scale}"
    if reason is None and logit_bias is not None and number(logit_bias, image_features) is None:
        reason = f"logit_bias={logit_bias}"
    return reason


def ranks_of(loss):
    """The process group of the ranks that a loss was built for; None: there is no such group."""
    group = world()
    if group is None or getattr(loss, "use_horovod", False):
        return None
    same = (loss.rank, loss.world_size) == (group.rank(), group.size())
    return group if same else None


class ClipLoss(peer.ClipLoss):
    """Works as `open_clip.ClipLoss` does.

    Build it with ``ClipLoss(local_loss, gather_with_grad, cache_labels, rank, world_size)`` and
    call it with ``(image_features, text_features, logit_scale, logit_bias, output_dict)``, the
    features ``[N, D]``.
    """

    def forward(
        self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False
    ):
        reason = reason_against(image_features, text_features, logit_scale, logit_bias)
        if reason is not None:
            falls_back("open_clip.ClipLoss", reason)
            return super().forward(
                image_features, text_features, logit_scale, logit_bias, output_dict
            )
        scale = number(logit_scale, image_features)
        group = None if self.local_loss and not self.gather_with_grad else ranks_of(self)
        if self.world_size == 1:
            total = clip_loss(image_features, text_features, scale, group=None)
        elif group is not None:
            total = self._over_ranks(image_features, text_features, scale, group)
        else:
            images, texts = self._gather(image_features, text_features)
            if self.local_loss:
                of_images = self._rows(image_features, texts, scale)
                total = (of_images + self._rows(text_features, images, scale)) / 2
            else:
                total = clip_loss(images, texts, scale, group=None)
        if logit_bias is not None:
            # A bias changes nothing and has a gradient of 0.
            total = total + 0.0 * as_scalar(number(logit_bias, image_features), image_features)
        total = in_dtype_of(image_features, total)
        return {"contrastive_loss": total} if output_dict else total

    def _over_ranks(self, image_features, text_features, scale, group):
        """The loss where all gradients reach the features: each pair of shards computed once."""
        features = image_features, text_features
        if not self.gather_with_grad:
            # Every process computes the whole loss, and keeps the gradient of its own alone.
            features = [ScaledGradient.apply(x, 1 / self.world_size) for x in features]
        loss = clip_loss(*features, scale, group=group)
        return loss if self.local_loss else MeanOfRanks.apply(loss, group)

    def _gather(self, image_features, text_features):
        options = {"use_horovod": self.use_horovod} if hasattr(self, "use_horovod") else {}
        return peer.gather_features(
            image_features,
            text_features,
            local_loss=self.local_loss,
            gather_with_grad=self.gather_with_grad,
            rank=self.rank,
            world_size=self.world_size,
            **options,
        )

    def _rows(self, own: torch.Tensor, everything: torch.Tensor, scale) -> torch.Tensor:
        """The mean cross entropy of this process's rows against those of all processes."""
        first = len(own) * self.rank
        compared = Comparison(own, everything, as_scalar(scale, own), offset=first)
        return compared.lse(Candidates("not_self"), positive=0).loss.mean()


class CoCaLoss(peer.CoCaLoss, ClipLoss):
    """Works as `open_clip.CoCaLoss`, with the contrastive term of `ClipLoss`."""


class SigLipLoss(peer.SigLipLoss):
    """Works as `open_clip.SigLipLoss`: ``SigLipLoss(cache_labels, rank, world_size, dist_impl)``.

    Call it with ``(image_features, text_features, logit_scale, logit_bias, output_dict)``, the
    features ``[N, D]``.
    """

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        group = ranks_of(self)
        operands = image_features, text_features, logit_scale, logit_bias
        if group is None or reason_against(*operands) is not None:
            return super().forward(*operands, output_dict)
        loss = self._own(*operands, group)
        return {"contrastive_loss": loss} if output_dict else loss

    def _own(self, image_features, text_features, logit_scale, logit_bias, group):
        """The loss of this process's images; with a group, against the texts of its ranks."""
        scale = number(logit_scale, image_features)
        bias = 0.0 if logit_bias is None else number(logit_bias, image_features)
        loss = siglip_loss(image_features, text_features, scale, bias, group=group)
        return in_dtype_of(image_features, loss, log_sigmoids)

    def _loss(
        self, image_features, text_features, logit_scale, logit_bias=None, negative_only=False
    ):
        reason = reason_against(image_features, text_features, logit_scale, logit_bias)
        if reason is not None:
            falls_back("open_clip.SigLipLoss", reason)
            return super()._loss(
                image_features, text_features, logit_scale, logit_bias, negative_only
            )
        if not negative_only:
            return self._own(image_features, text_features, logit_scale, logit_bias, None)
        scale = as_scalar(number(logit_scale, image_features), image_features)
        bias = 0.0 if logit_bias is None else number(logit_bias, image_features)
        compared = Comparison(image_features, text_features, scale)
        bias = as_scalar(bias, image_features)
        loss = compared.softplus_sum(Candidates("all"), bias).rows.mean()
        return in_dtype_of(image_features, loss, log_sigmoids)


def log_sigmoids(x: torch.Tensor) -> torch.Tensor:
    """What open_clip computes with features ``[N, D]``, for its dtype."""
    return F.logsigmoid(torch.ones_like(x) * (x @ x.T)).sum()
