"""The dense form of SupCon."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._dense import masked_logsumexp, maximum
from ._reduction import weighted_reduce


def sup_con_loss(
    features,
    labels=None,
    temperature=0.1,
    *,
    positives="out",
    positive_weights=None,
    contrast_mode="all",
    normalize=True,
    skip_unmatched=False,
    weights=None,
    reduction="mean",
    metrics=False,
):
    """SupCon (Khosla et al. 2020, eqs. 2 and 3) and the per-pair form, over the rows of all views.

    features are ``[N, D]`` or ``[N, V, D]``.
    """
    views = features.unsqueeze(1) if features.dim() == 2 else features
    N, V, _ = views.shape
    # The rows stand view by view.
    z = torch.cat(views.unbind(1))
    z = F.normalize(z, dim=1) if normalize else z
    anchors = z if contrast_mode == "all" else z[:N]
    logits = anchors @ z.T / temperature
    other = ~torch.eye(V * N, dtype=torch.bool, device=z.device)[: len(anchors)]
    if positive_weights is None:
        key = torch.arange(N, device=z.device) if labels is None else labels
        positive_weights = key[:, None] == key
    mask = (
        positive_weights.to(torch.promote_types(z.dtype, torch.float32)).repeat(
            len(anchors) // max(N, 1), V
        )
        * other
    )
    positive, total = mask != 0, mask.sum(1)
    matched = total != 0
    if positives == "out":
        log_prob = logits - masked_logsumexp(
            logits.masked_fill(~other, float("-inf")), 1
        ).unsqueeze(1)
        loss = -(mask * log_prob).sum(1) / total.masked_fill(~matched, 1.0)
        loss = loss.masked_fill(~matched, 0.0)
    elif positives == "in":
        everything = masked_logsumexp(logits.masked_fill(~other, float("-inf")), 1)
        loss = everything - masked_logsumexp(logits.masked_fill(~positive, float("-inf")), 1)
        loss = loss.masked_fill(~matched, 0.0 if skip_unmatched else float("inf"))
    else:
        negatives = masked_logsumexp(
            logits.masked_fill(positive | ~other, float("-inf")), 1
        ).unsqueeze(1)
        loss = (torch.logaddexp(negatives, logits) - logits).masked_fill(~positive, 0.0).sum(1)
    terms = (
        total if positives == "pairs" else matched if skip_unmatched else torch.ones_like(matched)
    )

    def by_sample(x):
        return x.view(V, N).T if features.dim() == 3 and contrast_mode == "all" else x

    loss = weighted_reduce(by_sample(loss), reduction, weights, by_sample(terms))
    if not metrics:
        return loss
    with torch.no_grad():
        best = maximum(logits.masked_fill(~positive, float("-inf")), 1)
        hit = best >= maximum(logits.masked_fill(~other, float("-inf")), 1)
        plain = (logits * temperature if normalize else logits).masked_fill(~positive, 0.0).sum(1)
        accuracy = weighted_reduce(
            by_sample((hit & matched).to(loss.dtype)), "mean", weights, by_sample(matched)
        )
        mean = weighted_reduce(
            by_sample(plain.to(loss.dtype)), "mean", weights, by_sample(positive.sum(1))
        )
        lse = masked_logsumexp(logits.masked_fill(positive | ~other, float("-inf")), 1)
    found = {"accuracy": accuracy, "positive_similarity": mean}
    return loss, found | {"logsumexp": by_sample(lse)}
