"""CPC: predicted against true latents, one softmax per step."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd.similarity import similarity
from ..backends import dispatch
from ..scalars import as_scalar
from ._arguments import check_vectors
from ._reduction import finish, two_sets


def cpc_loss(
    predictions: torch.Tensor,
    latents: torch.Tensor,
    *,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPC loss (van den Oord et al. 2018, arXiv:1807.03748, eqs. 3-4): raw dot products, one softmax per step over the batch.

    Args:
        predictions, latents: ``[K, B, D]``, the K predicted and true latents of B sequences.
        keys, weights: ``[B]``, of the sequences; see `fused_contrastive.losses`.

    Returns:
        ``(loss, accuracy)``: ``[K, B]`` with ``reduction="none"``, else a scalar, its mean over K·B; and the top-1 accuracy over K·B.
    """
    two_sets("predictions", predictions, "latents", latents, dim=3)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    check_vectors(predictions, predictions.shape[1], (predictions.shape[1],), keys, weights, None)
    if dispatch.is_eager(backend):
        return reference.cpc_loss(
            predictions, latents, keys=keys, weights=weights, reduction=reduction
        )
    result = similarity(
        predictions, latents, as_scalar(1.0, predictions), kind="not_self" if keys is None else "other_key", key_a=keys,
        key_b=keys, positive=0, extrema=True, backend=backend,
    )  # fmt: skip
    weights = None if weights is None else weights.expand(predictions.shape[:2])
    loss, metrics = finish(result.loss, reduction, True, result, result.pos, weights=weights)
    return loss, metrics["accuracy"]
