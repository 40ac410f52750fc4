"""The sigmoid family: sums of softplus over the dense similarity matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..problem import KEYED, candidate_mask
from ._cross_entropy import other_equal_keys
from ._dense import maximum, with_metrics


def sigmoid_sum(
    a, b, scale, row_bias, key_a, key_b, kind, offset, stride, positive, sign, normalize, extrema
):
    """Dense form of sigmoid.sigmoid_sum, in the accumulation dtype of `scale`: ``(rows, pos, row_max)``."""
    x = F.normalize(a.to(scale.dtype), dim=-1) if normalize else a.to(scale.dtype)
    y = (
        x
        if b is None
        else (F.normalize(b.to(scale.dtype), dim=-1) if normalize else b.to(scale.dtype))
    )
    key_b = key_a if b is None else key_b
    logits = scale * (x @ y.transpose(-1, -2))
    if row_bias is not None:
        logits = logits + row_bias.unsqueeze(-1)
    M, N = logits.shape[-2:]
    i, j = torch.arange(M, device=a.device), torch.arange(N, device=a.device)
    keep = candidate_mask(kind, offset, stride, i, j, key_a if kind in KEYED else None, key_b)
    kept = sign * logits if keep is None else (sign * logits).masked_fill(~keep, float("-inf"))
    rows, pos = -F.logsigmoid(-kept).sum(-1), None
    if positive >= 0:
        pos = logits[..., i, (i + positive) % max(N, 1)]
        rows = rows - F.logsigmoid(sign * pos)
        pos = pos.detach()
    return rows, pos, maximum(kept, -1) if extrema else None


def siglip_loss(
    image_features, text_features, logit_scale, logit_bias, *, keys=None, weights=None, reduction="mean", metrics=False
):  # fmt: skip
    """SigLIP (Zhai et al. 2023, algorithm 1): every image-text pair a binary classification; nothing is normalised inside."""
    logits = logit_scale * image_features @ text_features.T + logit_bias
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
