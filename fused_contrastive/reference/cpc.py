"""The dense form of CPC."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import other_equal_keys
from ._reduction import with_metrics


def cpc_loss(predictions, latents, *, keys=None, weights=None, reduction="mean"):
    """CPC (van den Oord et al. 2018): ``(loss, accuracy)``.

    For every step k the predictions are compared with the latents of the batch, both ``[K, B, D]``.
    """
    logits = predictions @ latents.transpose(1, 2)
    steps, B, _ = logits.shape
    target = torch.arange(B, device=logits.device)
    excluded = other_equal_keys(keys, keys, target)
    logits = logits if excluded is None else logits.masked_fill(excluded, float("-inf"))
    target, weights = target.expand(steps, B), None if weights is None else weights.expand(steps, B)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(
        target.shape
    )
    loss, metrics = with_metrics(loss, reduction, logits, target, True, weights=weights)
    return loss, metrics["accuracy"]
