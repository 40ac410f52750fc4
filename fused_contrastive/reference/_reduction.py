"""From losses of rows to what is returned."""

from __future__ import annotations

import torch

from ._dense import maximum


def reduce(loss: torch.Tensor, reduction: str, weights: torch.Tensor | None = None) -> torch.Tensor:
    """none, mean (NaN over nothing) or sum (0 over nothing) of the per-row losses; with weights ``w l``, ``Σ w l / Σ w`` or ``Σ w l``, where a
    weight of 0 leaves out a loss that is not finite."""
    if weights is not None:
        weights = weights.to(loss.dtype)
        loss = weights * loss.masked_fill((weights == 0) & ~loss.isfinite(), 0.0)
        if reduction == "mean":
            return loss.sum() / weights.sum()
    return loss if reduction == "none" else getattr(loss, reduction)()


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


def with_metrics(
    loss, reduction, logits, target, metrics, similarity_of=None, *, plain=None, weights=None
):
    """``loss`` reduced, and with `metrics` the dictionary of top-1 accuracy and mean positive similarity, that of the positives in `plain`
    (None: `logits`)."""
    loss = reduce(loss, reduction, weights)
    if not metrics:
        return loss
    with torch.no_grad():
        target = target.unsqueeze(-1)
        positive, plain = (
            x.gather(-1, target).squeeze(-1) for x in (logits, logits if plain is None else plain)
        )
        hit = (positive >= maximum(logits.scatter(-1, target, float("-inf")), -1)).to(loss.dtype)
        similarity = plain if similarity_of is None else similarity_of(plain)
        accuracy, mean = (
            reduce(hit, "mean", weights),
            reduce(similarity.to(loss.dtype), "mean", weights),
        )
    return loss, {"accuracy": accuracy, "positive_similarity": mean}


def both_directions(forward, backward, reduction, target, metrics, plain=None, weights=None):
    """The mean of two directions' ``(loss, logits)`` and metrics."""
    loss = (forward[0] + backward[0]) / 2
    one = with_metrics(loss, reduction, forward[1], target, metrics, plain=plain, weights=weights)
    if not metrics:
        return one
    two = with_metrics(
        backward[0], reduction, backward[1], target, True, plain=plain, weights=weights
    )
    return one[0], {name: (one[1][name] + two[1][name]) / 2 for name in one[1]}
