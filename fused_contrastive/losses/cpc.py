"""CPC: predicted against true latents, one softmax per step."""

from __future__ import annotations

import torch

from .. import checks, dispatch, reference
from ..functions import as_scalar, similarity
from .common import finish, two_sets


def cpc_loss(
    predictions: torch.Tensor, latents: torch.Tensor, *, reduction: str = "mean", backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPC loss (van den Oord et al. 2018, arXiv:1807.03748, eqs. 3-4): raw dot products, one softmax per step over the batch.

    Args:
        predictions, latents: ``[K, B, D]``, the K predicted and true latents of B sequences.

    Returns:
        ``(loss, accuracy)``: ``[K, B]`` with ``reduction="none"``, else a scalar, its mean over K·B; and the top-1 accuracy over K·B.
    """
    two_sets("predictions", predictions, "latents", latents, dim=3)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if dispatch.is_eager(backend):
        return reference.cpc_loss(predictions, latents, reduction=reduction)
    result = similarity(
        predictions, latents, as_scalar(1.0, predictions), kind="not_self", positive=0, extrema=True, backend=backend
    )
    loss, metrics = finish(result.loss, reduction, True, result, result.pos)
    return loss, metrics["accuracy"]
