"""CLIP: image-text pairs, in both directions."""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import checks, reference
from ..scalars import as_scalar
from ._arguments import (
    asks_for_eager,
    check_ignore_index,
    check_labels,
    check_options,
    check_settings,
    check_vectors,
    one_loss_each,
    two_sets,
)
from ._cross_entropy import in_batch
from ._labelled import labelled_losses, reduced
from ._module import Loss, given_once, own_scale
from ._over_ranks import NOT_GIVEN, over_ranks


@over_ranks
def clip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float | torch.Tensor,
    logit_bias: float | torch.Tensor | None = None,
    *,
    labels: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    ignore_index: int | None = None,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    hardness: float = 0.0,
    reduction: str = "mean",
    metrics: bool = False,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """The CLIP loss (Radford et al. 2021, arXiv:2103.00020, figure 3).

    It is the mean of both directions' cross entropies. With ``s_ij = logit_scale <image_i,
    text_j>`` the loss of pair i is ``(log sum_j exp s_ij + log sum_j exp s_ji) / 2 - s_ii``.

    With `labels` every image has all texts of its label as positives, and a text all images (UniCL,
    Yang et al. 2022, arXiv:2204.03610, eqs. 3 and 4). The loss of image i is ``log sum_j exp s_ij -
    mean_P s_ip`` over its positives P, that of a text likewise.

    Args:
        image_features, text_features: ``[N, D]``, normalised by the caller; nothing is normalised
            inside. With two `labels` they may have different numbers of rows.
        logit_scale: multiplies the dot products (1 / temperature; already exponentiated).
        logit_bias: a scalar added to every logit. The loss does not depend on it, and its gradient
            is 0.
        labels: integers ``[N]`` of the pairs, or ``(image_labels, text_labels)``. Then images and
            texts need not come in pairs. What has no positive has the loss 0, and does not count
            in the mean.
        ignore_index: images and texts with this label have no loss, and are no candidates.
        keys, weights: ``[N]``, one for each pair. With labels, weights may be ``(image_weights,
            text_weights)``, where either may be None.
        bias: ``[N]`` of the pairs, or ``(image_bias, text_bias)``, where either may be None. A
            text's bias counts where texts are the candidates, an image's where images are.
        label_smoothing, margin, hardness: see `fused_contrastive.losses`, as for the vectors above.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar. The mean is that of the means of both
        directions.

    >>> import torch, fused_contrastive
    >>> features = torch.eye(4)
    >>> round(fused_contrastive.clip_loss(features, features, logit_scale=2.0).item(), 4)
    0.3408
    >>> two_captions = features.repeat_interleave(2, 0)  # of each image
    >>> labels = torch.arange(4), torch.arange(4).repeat_interleave(2)
    >>> loss = fused_contrastive.clip_loss(features, two_captions, 2.0, labels=labels)
    >>> round(loss.item(), 4)
    0.6873
    >>> fused_contrastive.clip_loss(features, features, 2.0, reduction="none").shape
    torch.Size([4])
    """
    two_sets("image_features", image_features, "text_features", text_features, labels=labels)
    N, device = image_features.shape[0], image_features.device
    checks.number("logit_scale", logit_scale, device)
    check_settings(reduction=reduction, metrics=metrics)
    if logit_bias is not None:
        checks.number("logit_bias", logit_bias, device)
    options = check_options(label_smoothing=label_smoothing, margin=margin, hardness=hardness)
    operands = image_features, text_features, logit_scale, logit_bias
    settings = {"reduction": reduction, "metrics": metrics}
    where = {"group": group, "backend": backend}
    eager = asks_for_eager(backend, group)
    if labels is not None:
        others = {"keys": keys, "bias": bias, **options.given()}
        sets = image_features, text_features
        labels, weights = check_labels(*sets, labels, ignore_index, weights, both=True, **others)
        one_loss_each(*sets, reduction)
        settings |= {"labels": labels, "ignore_index": ignore_index, "weights": weights}
        if eager:
            return reference.clip_loss(*operands, **settings)
        return _fused_with_labels(*operands, **where, **settings)
    check_ignore_index(ignore_index, labels)
    if bias is not None and not (isinstance(bias, tuple) and len(bias) == 2):
        bias = (bias, bias)
    check_vectors(image_features, N, (N,), keys, weights)
    for x in bias or ():
        check_vectors(image_features, N, (N,), bias=x)
    tensors = {"keys": keys, "weights": weights, "bias": bias}
    if eager:
        return reference.clip_loss(*operands, **tensors, **settings, **options.given())
    return _fused(*operands, options, **where, **tensors, **settings)


def _fused_with_labels(
    image_features,
    text_features,
    logit_scale,
    logit_bias,
    *,
    labels,
    ignore_index,
    weights,
    reduction,
    metrics,
    group,
    backend,
):
    settings = {"normalize": False, "ignore_index": ignore_index, "metrics": metrics}
    where = {"group": group, "backend": backend}
    scale = as_scalar(logit_scale, image_features)
    sets = image_features, text_features
    directions = labelled_losses(*sets, labels, scale, both=True, **settings, **where)
    if logit_bias is not None:
        directions = [x.shifted(as_scalar(logit_bias, image_features)) for x in directions]
    return reduced(directions, reduction, metrics, weights, group)


def _fused(
    image_features,
    text_features,
    logit_scale,
    logit_bias,
    options,
    *,
    group,
    backend,
    keys,
    weights,
    bias,
    reduction,
    metrics,
):
    outcome = in_batch(
        image_features,
        text_features,
        as_scalar(logit_scale, image_features),
        options,
        normalize=False,
        both=True,
        keys=keys,
        bias=bias,
        metrics=metrics,
        group=group,
        backend=backend,
    )
    if logit_bias is not None:
        logit_bias = as_scalar(logit_bias, image_features)
        loss, pos = outcome.loss + 0.0 * logit_bias, outcome.pos + logit_bias.detach()
        outcome = outcome._replace(loss=loss, pos=pos)
    return outcome.reduced(reduction, metrics, weights, group)


class ClipLoss(Loss):
    """Module form of `clip_loss`: ``ClipLoss()(image_features, text_features, logit_scale)``.

    With ``learnable=True`` the module owns the scale, and `forward` takes none:
    ``ClipLoss(1 / 0.07, learnable=True)(image_features, text_features)``. The parameter is
    ``log_logit_scale``, which starts at log(`logit_scale`). ``ClipLoss(14.0)`` has a fixed scale.
    The tensors `labels`, `keys`, `weights` and `bias` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.ClipLoss(logit_scale=2.0, learnable=True)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    0.3408
    """

    def __init__(
        self,
        logit_scale=None,
        *,
        ignore_index=None,
        label_smoothing=0.0,
        margin=0.0,
        hardness=0.0,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
    ):
        options = {"label_smoothing": label_smoothing, "margin": margin, "hardness": hardness}
        where = {"group": group, "strategy": strategy, "backend": backend}
        settings = {"ignore_index": ignore_index, "reduction": reduction, "metrics": metrics}
        super().__init__(learnable, **options, **settings, **where)
        self._logit_scale = own_scale(logit_scale, self.learnable)
        if learnable:
            self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale=None,
        logit_bias=None,
        *,
        labels=None,
        keys=None,
        weights=None,
        bias=None,
    ):
        example = "ClipLoss(1 / 0.07, learnable=True)"
        scale = given_once("logit_scale", self._logit_scale, logit_scale, example)
        if self.learnable:
            scale = self.learned(self.log_logit_scale).exp()
        operands = image_features, text_features, scale, logit_bias
        tensors = {"labels": labels, "keys": keys, "weights": weights, "bias": bias}
        return clip_loss(*operands, **tensors, **self.options)
