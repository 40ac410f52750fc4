"""The dense form of SigLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import other_equal_keys
from ._labelled import found_metrics
from ._reduction import reduce, with_metrics


def siglip_loss(
    image_features,
    text_features,
    logit_scale,
    logit_bias,
    *,
    labels=None,
    average_positives=False,
    keys=None,
    weights=None,
    reduction="mean",
    metrics=False,
):
    """SigLIP (Zhai et al. 2023, algorithm 1): every pair is a binary classification.

    Nothing is normalised inside. Both sets of features are ``[N, D]``. With labels they may have
    different numbers of rows, and all pairs of equal labels are positives.
    """
    logits = logit_scale * image_features @ text_features.T + logit_bias
    if labels is not None:
        rows, columns = labels if isinstance(labels, tuple) else (labels, labels)
        positive = rows.unsqueeze(1) == columns
        count = positive.sum(1, keepdim=True)
        pairs = -F.logsigmoid(torch.where(positive, logits, -logits))
        if average_positives:
            pairs = torch.where(positive, pairs / count.clamp_min(1), pairs)
        loss = reduce(pairs.sum(1), reduction, weights)
        if not metrics:
            return loss
        return loss, found_metrics([(logits.detach(), logits.detach(), positive)], (weights,))
    target = torch.arange(len(logits), device=logits.device)
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    pairs = -F.logsigmoid(labels * logits)
    excluded = other_equal_keys(keys, keys, target)
    if excluded is not None:
        pairs, logits = (
            pairs.masked_fill(excluded, 0.0),
            logits.masked_fill(excluded, float("-inf")),
        )
    return with_metrics(pairs.sum(-1), reduction, logits, target, metrics, weights=weights)
