"""open_clip: ``from fused_contrastive.integrations.open_clip import ClipLoss, SigLipLoss``.

Every option streams. Over several processes both losses compute each pair of shards once (see
docs/many_gpus.md). Values and gradients of features are open_clip's for every `dist_impl` and
all options but one: without `gather_with_grad`, `local_loss` leaves out a part of the gradient, so
open_clip's own gather runs. Without `gather_with_grad` the features' gradients are one W-th of
those of the global loss, as in open_clip, for W processes. The gradients of a scale are shares:
their mean over the processes, which DistributedDataParallel takes, is open_clip's.

`cache_labels` has nothing to cache. `CoCaLoss` is open_clip's with this contrastive term. In
`DistillClipLoss` the teacher's features and scale are constants. A scale or bias of several
elements falls back. So does distillation where the teacher needs a gradient, and where open_clip's
own gather would run.

A trainer that builds its loss with `open_clip.create_loss` gets these classes after `patch()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..dtypes import matrix_dtype
from ..losses._comparison import Comparison
from ..losses.clip import clip_loss
from ..losses.distill_clip import distill_clip_loss
from ..losses.siglip import siglip_loss
from ..problem import Candidates
from ..scalars import as_scalar
from ._classes import absent
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
from ._patch import patching

if TYPE_CHECKING:
    import open_clip.loss as peer
else:
    peer = package("open_clip.loss", "open_clip_torch")

__all__ = ["ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss", "patch"]

__getattr__ = absent(__name__)


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
        images, texts = self._scaled(image_features, text_features)
        loss = clip_loss(images, texts, scale, group=group)
        return loss if self.local_loss else MeanOfRanks.apply(loss, group)

    def _scaled(self, *features) -> tuple:
        """The features, with the part of the gradient that `gather_with_grad` chooses."""
        if self.gather_with_grad:
            return features
        # Every process computes the whole loss, and keeps the gradient of its own alone.
        return tuple(ScaledGradient.apply(x, 1 / self.world_size) for x in features)

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


class DistillClipLoss(peer.DistillClipLoss, ClipLoss):
    """Works as `open_clip.DistillClipLoss`, whose arguments are those of `ClipLoss`.

    Call it with ``(image_features, text_features, logit_scale, dist_image_features,
    dist_text_features, dist_logit_scale, output_dict)``, the features ``[N, D]`` of the student and
    ``[N, T]`` of the teacher. It returns the contrastive term and the distillation.
    """

    # The package's class has another signature than its base, too.
    def forward(  # type: ignore[override]
        self,
        image_features,
        text_features,
        logit_scale,
        dist_image_features,
        dist_text_features,
        dist_logit_scale,
        output_dict=False,
    ):
        student = image_features, text_features, logit_scale
        teacher = dist_image_features, dist_text_features, dist_logit_scale
        reason = self._distillation_reason(student, teacher)
        if reason is not None:
            falls_back("open_clip.DistillClipLoss", reason)
            return peer.DistillClipLoss.forward(self, *student, *teacher, output_dict)
        group = None if self.world_size == 1 else ranks_of(self)
        scale = number(logit_scale, image_features)
        images, texts = image_features, text_features
        if group is not None:
            images, texts = self._scaled(images, texts)
        terms = [
            clip_loss(images, texts, scale, group=group),
            distill_clip_loss(
                images,
                texts,
                scale,
                *teacher[:2],
                number(dist_logit_scale, image_features),
                group=group,
            ),
        ]
        if group is not None and not self.local_loss:
            terms = [MeanOfRanks.apply(term, group) for term in terms]
        contrastive, distill = (in_dtype_of(image_features, term) for term in terms)
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distill}
        return contrastive, distill

    def _distillation_reason(self, student, teacher) -> str | None:
        """Why this does not stream; None: it does."""
        for images, texts, scale in (student, teacher):
            reason = reason_against(images, texts, scale, None)
            if reason is not None:
                return reason
        if len(student[0]) != len(teacher[0]):
            return "features of student and teacher of different lengths"
        if (
            student[0].device != teacher[0].device
            or matrix_dtype(student[0]) != matrix_dtype(teacher[0])
            or student[0].dtype != teacher[0].dtype
        ):
            return "features of student and teacher of different devices or dtypes"
        if any(isinstance(x, torch.Tensor) and x.requires_grad for x in teacher):
            return "a teacher that needs a gradient"
        if self.world_size == 1:
            return None
        if ranks_of(self) is None or (self.local_loss and not self.gather_with_grad):
            return "features that open_clip's own code gathers"
        return None


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


patch = patching(
    __name__,
    {
        peer.ClipLoss: ClipLoss,
        peer.CoCaLoss: CoCaLoss,
        peer.DistillClipLoss: DistillClipLoss,
        peer.SigLipLoss: SigLipLoss,
    },
)
