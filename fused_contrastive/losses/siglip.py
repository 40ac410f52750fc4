"""SigLIP: every image-text pair a binary classification."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd.sigmoid import sigmoid_sum
from ..backends import dispatch
from ..scalars import as_scalar
from ._arguments import check_vectors
from ._reduction import finish, two_sets


def siglip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float | torch.Tensor,
    logit_bias: float | torch.Tensor,
    *,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """The SigLIP loss (Zhai et al. 2023, arXiv:2303.15343, algorithm 1): ``sum_j softplus(-y_ij (logit_scale <image_i, text_j> + logit_bias))`` per
    image i, with y = 1 for its own text and -1 for every other.

    Args:
        image_features, text_features: ``[N, D]``, normalised by the caller; nothing is normalised inside.
        logit_scale: multiplies the dot products (already exponentiated).
        logit_bias: added to every logit.
        keys: ``[N]`` integers: two pairs with the same key are no negatives of each other.
        weights: ``[N]``, of the images; see `fused_contrastive.losses`.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar; the mean is over the N images (not the N^2 pairs). Accuracy is that of
        finding an image's text.
    """
    two_sets("image_features", image_features, "text_features", text_features)
    checks.number("logit_scale", logit_scale, image_features.device)
    checks.number("logit_bias", logit_bias, image_features.device)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.flags(metrics=metrics)
    check_vectors(
        image_features, image_features.shape[0], (image_features.shape[0],), keys, weights, None
    )
    if dispatch.is_eager(backend):
        return reference.siglip_loss(
            image_features, text_features, logit_scale, logit_bias, keys=keys, weights=weights, reduction=reduction,
            metrics=metrics,
        )  # fmt: skip
    scale, bias = (as_scalar(x, image_features) for x in (logit_scale, logit_bias))
    kind = "not_self" if keys is None else "other_key"
    result = sigmoid_sum(
        image_features, text_features, scale, bias, kind=kind, key_a=keys, key_b=keys, positive=0, extrema=metrics,
        backend=backend,
    )  # fmt: skip
    return finish(result.rows, reduction, metrics, result, result.pos, weights=weights)
