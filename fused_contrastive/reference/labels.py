"""The losses with several positives per row, and those that leave the positive out of the denominator."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import other_equal_keys
from ._dense import masked_logsumexp, maximum, reduce, with_metrics


def weighted_reduce(loss: torch.Tensor, reduction: str, weights=None, terms=None) -> torch.Tensor:
    """Losses ``[N]`` or ``[N, V]`` reduced; with ``weights [N]`` of the samples ``w l``, ``Σ w l`` or ``Σ w l / Σ w``, where a weight of 0 leaves
    out a loss that is not finite. Each loss counts once in the denominator of the mean, or as often as `terms` (of its shape) says."""
    if weights is not None:
        weights = weights.to(loss.dtype).view(-1, *[1] * (loss.dim() - 1))
        loss = weights * loss.masked_fill((weights == 0) & ~loss.isfinite(), 0.0)
    if reduction != "mean" or (weights is None and terms is None):
        return reduce(loss, reduction)
    terms = torch.ones_like(loss) if terms is None else terms.to(loss.dtype)
    return loss.sum() / (terms if weights is None else weights * terms).sum()


def sup_con_loss(
    features, labels=None, temperature=0.1, *, positives="out", positive_weights=None, contrast_mode="all", normalize=True,
    skip_unmatched=False, weights=None, reduction="mean", metrics=False,
):  # fmt: skip
    """SupCon (Khosla et al. 2020, eqs. 2 and 3) and the per-pair form, over the rows of all views."""
    views = features.unsqueeze(1) if features.dim() == 2 else features
    N, V, _ = views.shape
    z = torch.cat(views.unbind(1))  # view by view
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
    return loss, {"accuracy": accuracy, "positive_similarity": mean}


def dcl_loss(
    z1,
    z2,
    temperature=0.1,
    *,
    normalize=True,
    keys=None,
    weights=None,
    reduction="mean",
    metrics=False,
):
    """DCL (Yeh et al. 2022, eq. 6): NT-Xent without the positive in the denominator."""
    return _decoupled(z1, z2, temperature, None, normalize, keys, weights, reduction, metrics)


def dclw_loss(
    z1,
    z2,
    temperature=0.1,
    sigma=0.5,
    *,
    normalize=True,
    keys=None,
    weights=None,
    reduction="mean",
    metrics=False,
):
    """DCLW (Yeh et al. 2022): DCL with the positives weighted by ``2 - B softmax(<z1, z2> / sigma)``, a constant."""
    return _decoupled(z1, z2, temperature, sigma, normalize, keys, weights, reduction, metrics)


def _decoupled(z1, z2, temperature, sigma, normalize, keys, weights, reduction, metrics):
    if normalize:
        z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    B, z = len(z1), torch.cat([z1, z2])
    keys, weights = (None if x is None else x.repeat(2) for x in (keys, weights))
    target = torch.arange(2 * B, device=z.device).roll(B)
    excluded = torch.eye(2 * B, dtype=torch.bool, device=z.device)
    excluded = excluded if keys is None else other_equal_keys(keys, keys, target)
    logits = (z @ z.T / temperature).masked_fill(excluded, float("-inf"))
    others = logits.scatter(1, target.unsqueeze(1), float("-inf"))
    lse = masked_logsumexp(others, 1)
    positive = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    if sigma is not None:
        weight = 2 - B * ((z1 * z2).sum(1) / sigma).softmax(0).detach()
        positive = positive * torch.cat([weight, weight])
    cosine = (lambda s: s * temperature) if normalize else None
    return with_metrics(lse - positive, reduction, logits, target, metrics, cosine, weights=weights)
