"""CLIP: both directions of image-text pairs."""

from __future__ import annotations

import torch

from .. import checks, dispatch, reference
from ..functions import as_scalar, similarity
from .common import finish, two_sets


def clip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float | torch.Tensor,
    logit_bias: float | torch.Tensor | None = None,
    *,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """The CLIP loss (Radford et al. 2021, arXiv:2103.00020, figure 3): the mean of both directions' cross entropies.

    Args:
        image_features, text_features: ``[N, D]``, normalised by the caller; nothing is normalised inside.
        logit_scale: multiplies the dot products (1 / temperature; already exponentiated).
        logit_bias: a scalar added to every logit: the loss does not depend on it and its gradient is 0.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.
    """
    two_sets("image_features", image_features, "text_features", text_features)
    checks.number("logit_scale", logit_scale, image_features.device)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if logit_bias is not None:
        checks.number("logit_bias", logit_bias, image_features.device)
    if dispatch.is_eager(backend):
        return reference.clip_loss(
            image_features, text_features, logit_scale, logit_bias, reduction=reduction, metrics=metrics
        )
    result = similarity(
        image_features, text_features, as_scalar(logit_scale, image_features), kind="not_self", positive=0, columns=True,
        extrema=metrics, backend=backend,
    )  # fmt: skip
    loss, pos = result.loss, result.pos
    if logit_bias is None:
        return finish(loss, reduction, metrics, result, pos, columns=True)
    logit_bias = as_scalar(logit_bias, image_features)
    reduced = finish(loss + 0.0 * logit_bias, reduction, metrics, result, pos, columns=True)
    if metrics:
        reduced[1]["positive_similarity"] = reduced[1]["positive_similarity"] + logit_bias.detach()
    return reduced
