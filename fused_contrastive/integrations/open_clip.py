"""open_clip: ``from fused_contrastive.integrations.open_clip import ClipLoss, SigLipLoss``.

Every option streams, over several processes, too. `local_loss`, `gather_with_grad` and `dist_impl`
use open_clip's own communication, and so have its gradients. `cache_labels` has nothing to cache.
`CoCaLoss` is open_clip's with this contrastive term. Distillation needs the logits of two models at
once, which `ClipLoss.get_logits` still returns; it has no streaming form here. A scale or bias of
several elements falls back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..losses._comparison import Comparison
from ..losses.clip import clip_loss
from ..losses.siglip import siglip_loss
from ..problem import Candidates
from ..scalars import as_scalar
from ._common import falls_back, in_dtype_of, mismatch, number, package

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
        if self.world_size == 1:
            total = clip_loss(image_features, text_features, scale)
        else:
            images, texts = self._gather(image_features, text_features)
            if self.local_loss:
                of_images = self._rows(image_features, texts, scale)
                total = (of_images + self._rows(text_features, images, scale)) / 2
            else:
                total = clip_loss(images, texts, scale)
        if logit_bias is not None:
            # A bias changes nothing and has a gradient of 0.
            total = total + 0.0 * as_scalar(number(logit_bias, image_features), image_features)
        total = in_dtype_of(image_features, total)
        return {"contrastive_loss": total} if output_dict else total

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

    def _loss(
        self, image_features, text_features, logit_scale, logit_bias=None, negative_only=False
    ):
        reason = reason_against(image_features, text_features, logit_scale, logit_bias)
        if reason is not None:
            falls_back("open_clip.SigLipLoss", reason)
            return super()._loss(
                image_features, text_features, logit_scale, logit_bias, negative_only
            )
        scale = number(logit_scale, image_features)
        bias = 0.0 if logit_bias is None else number(logit_bias, image_features)
        if negative_only:
            scale, bias = as_scalar(scale, image_features), as_scalar(bias, image_features)
            compared = Comparison(image_features, text_features, scale)
            loss = compared.softplus_sum(Candidates("all"), bias).rows.mean()
        else:
            loss = siglip_loss(image_features, text_features, scale, bias)
        return in_dtype_of(
            image_features, loss, lambda x: F.logsigmoid(torch.ones_like(x) * (x @ x.T)).sum()
        )
