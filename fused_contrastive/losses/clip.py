"""CLIP: both directions of image-text pairs."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..backends import dispatch
from ..scalars import as_scalar
from ._arguments import check_options, check_vectors
from ._cross_entropy import in_batch
from ._reduction import two_sets


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
    backend: str | None = None,
):
    """The CLIP loss (Radford et al. 2021, arXiv:2103.00020, figure 3): the mean of both directions' cross entropies.

    Args:
        image_features, text_features: ``[N, D]``, normalised by the caller; nothing is normalised inside.
        logit_scale: multiplies the dot products (1 / temperature; already exponentiated).
        logit_bias: a scalar added to every logit: the loss does not depend on it and its gradient is 0.
        keys, weights: ``[N]``, of the pairs; see `fused_contrastive.losses`, as for the options `label_smoothing`, `margin` and `hardness`.
        bias: ``[N]`` of the pairs, or ``(image_bias, text_bias)``: a text's where texts are the candidates, an image's where images are;
            either may be None.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.
    """
    two_sets("image_features", image_features, "text_features", text_features)
    checks.number("logit_scale", logit_scale, image_features.device)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.flags(metrics=metrics)
    if logit_bias is not None:
        checks.number("logit_bias", logit_bias, image_features.device)
    options, N = check_options(label_smoothing, margin, hardness), image_features.shape[0]
    if bias is not None and not (isinstance(bias, tuple) and len(bias) == 2):
        bias = (bias, bias)
    check_vectors(image_features, N, (N,), keys, weights, None)
    for x in bias or ():
        check_vectors(image_features, N, (N,), None, None, x)
    if dispatch.is_eager(backend):
        return reference.clip_loss(
            image_features, text_features, logit_scale, logit_bias, keys=keys, weights=weights, bias=bias,
            label_smoothing=label_smoothing, margin=margin, hardness=hardness, reduction=reduction, metrics=metrics,
        )  # fmt: skip
    outcome = in_batch(
        image_features, text_features, as_scalar(logit_scale, image_features), options, normalize=False, both=True,
        keys=keys, bias=bias, metrics=metrics, backend=backend,
    )  # fmt: skip
    if logit_bias is not None:
        logit_bias = as_scalar(logit_bias, image_features)
        outcome = outcome._replace(
            loss=outcome.loss + 0.0 * logit_bias, pos=outcome.pos + logit_bias.detach()
        )
    return outcome.reduced(reduction, metrics, weights)
