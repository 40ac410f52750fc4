"""The dense form of InfoNCE without a guide's false negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._reduction import reduce


def guided_info_nce_loss(
    query,
    positive_key,
    negative_keys=None,
    temperature=0.01,
    *,
    guide_query=None,
    guide_positive_key=None,
    guide_negative_keys=None,
    margin=0.0,
    margin_strategy="absolute",
    contrast_queries=True,
    contrast_positives=True,
    normalize=True,
    weights=None,
    reduction="mean",
):
    """GISTEmbed (Solatorio 2024, eq. 6): queries and positives ``[N, D]``, negatives ``[K, D]``."""

    def similarities(query, positives, negatives, normalize):
        """The similarities ``[N, C]`` of the queries' candidates, their own positive first."""
        docs = positives if negatives is None else torch.cat([positives, negatives])
        if normalize:
            query, positives, docs = (F.normalize(x, dim=-1) for x in (query, positives, docs))
        blocks = [query @ docs.T]
        blocks += [query @ query.T] if contrast_queries else []
        blocks += [positives @ positives.T] if contrast_positives else []
        return torch.cat(blocks, 1)

    N, K = len(query), 0 if negative_keys is None else len(negative_keys)
    s = similarities(query, positive_key, negative_keys, normalize)
    t = s
    if guide_query is not None:
        t = similarities(guide_query, guide_positive_key, guide_negative_keys, True)
    t = t.detach()
    own = t.diagonal().unsqueeze(1)
    limit = own - margin * (own.abs() if margin_strategy == "relative" else 1)
    # Similarities that rounding alone sets apart are equal.
    limit = limit + 16 * torch.finfo(t.dtype).eps * (1 + own.abs())
    positive = torch.eye(N, s.shape[1], dtype=torch.bool, device=s.device)
    masked = (t > limit) & ~positive
    for block in range(contrast_queries + contrast_positives):
        # No query, and no positive, is its own negative.
        masked.diagonal(N + K + block * N).fill_(True)
    logits = (s / temperature).masked_fill(masked, -torch.inf)
    target = torch.arange(N, device=s.device)
    return reduce(F.cross_entropy(logits, target, reduction="none"), reduction, weights)
