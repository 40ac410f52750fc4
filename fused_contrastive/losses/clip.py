"""CLIP: image-text pairs, in both directions."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..scalars import as_scalar
from ._arguments import asks_for_eager, check_options, check_settings, check_vectors, two_sets
from ._cross_entropy import in_batch
from ._module import Loss, given_once, own_scale
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import Direction


@over_ranks
def clip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float | torch.Tensor,
    logit_bias: float | torch.Tensor | None = None,
    *,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
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

    Args:
        image_features, text_features: ``[N, D]``, normalised by the caller; nothing is normalised
            inside.
        logit_scale: multiplies the dot products (1 / temperature; already exponentiated).
        logit_bias: a scalar added to every logit. The loss does not depend on it, and its gradient
            is 0.
        keys, weights: ``[N]``, one for each pair.
        bias: ``[N]`` of the pairs, or ``(image_bias, text_bias)``, where either may be None. A
            text's bias counts where texts are the candidates, an image's where images are.
        label_smoothing, margin, hardness: see `fused_contrastive.losses`, as for the vectors above.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.

    >>> import torch, fused_contrastive
    >>> features = torch.eye(4)
    >>> round(fused_contrastive.clip_loss(features, features, logit_scale=2.0).item(), 4)
    0.3408
    >>> fused_contrastive.clip_loss(features, features, 2.0, reduction="none").shape
    torch.Size([4])
    """
    two_sets("image_features", image_features, "text_features", text_features)
    N, device = image_features.shape[0], image_features.device
    checks.number("logit_scale", logit_scale, device)
    check_settings(reduction=reduction, metrics=metrics)
    if logit_bias is not None:
        checks.number("logit_bias", logit_bias, device)
    options = check_options(label_smoothing=label_smoothing, margin=margin, hardness=hardness)
    if bias is not None and not (isinstance(bias, tuple) and len(bias) == 2):
        bias = (bias, bias)
    check_vectors(image_features, N, (N,), keys, weights)
    for x in bias or ():
        check_vectors(image_features, N, (N,), bias=x)
    operands = image_features, text_features, logit_scale, logit_bias
    tensors = {"keys": keys, "weights": weights, "bias": bias}
    settings = {"reduction": reduction, "metrics": metrics}
    if asks_for_eager(backend, group):
        return reference.clip_loss(*operands, **tensors, **settings, **options.given())
    where = {"group": group, "backend": backend}
    return _fused(*operands, options, **where, **tensors, **settings)


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
        if metrics:
            outcome = outcome._replace(
                directions=[_shifted(x, logit_bias) for x in outcome.directions]
            )
    return outcome.reduced(reduction, metrics, weights, group)


def _shifted(direction: Direction, by: torch.Tensor) -> Direction:
    return direction._replace(lse=direction.lse + by)


class ClipLoss(Loss):
    """Module form of `clip_loss`: ``ClipLoss()(image_features, text_features, logit_scale)``.

    With ``learnable=True`` the module owns the scale, and `forward` takes none:
    ``ClipLoss(1 / 0.07, learnable=True)(image_features, text_features)``. The parameter is
    ``log_logit_scale``, which starts at log(`logit_scale`). ``ClipLoss(14.0)`` has a fixed scale.
    The tensors `keys`, `weights` and `bias` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.ClipLoss(logit_scale=2.0, learnable=True)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    0.3408
    """

    def __init__(
        self,
        logit_scale=None,
        *,
        label_smoothing=0.0,
        margin=0.0,
        hardness=0.0,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        options = {"label_smoothing": label_smoothing, "margin": margin, "hardness": hardness}
        where = {"group": group, "strategy": strategy, "backend": backend}
        options |= {"reduction": reduction, "metrics": metrics}
        super().__init__(learnable, max_scale, **options, **where)
        self._logit_scale = own_scale(logit_scale, self.learnable)
        if learnable:
            self.log_logit_scale = self.log_scale("logit_scale", logit_scale)

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale=None,
        logit_bias=None,
        *,
        keys=None,
        weights=None,
        bias=None,
    ):
        example = "ClipLoss(1 / 0.07, learnable=True)"
        scale = given_once("logit_scale", self._logit_scale, logit_scale, example)
        if self.learnable:
            scale = self.bounded(self.learned(self.log_logit_scale)).exp()
        operands = image_features, text_features, scale, logit_bias
        return clip_loss(*operands, keys=keys, weights=weights, bias=bias, **self.options)
