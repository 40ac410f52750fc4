"""From the losses of rows to what is returned: reductions and metrics."""

from __future__ import annotations

import torch

from ._dense import maximum


def reduce(loss: torch.Tensor, reduction: str, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The losses of rows, reduced. The mean over nothing is NaN, and the sum is 0.

    Args:
        loss: any shape.
        reduction: "none", "mean" or "sum". With weights w of losses l these are ``w l``,
            ``sum(w l) / sum(w)`` and ``sum(w l)``.
        weights: the shape of loss, or None. A weight of 0 leaves out a loss that is not finite.
    """
    if weights is not None:
        weights = weights.to(loss.dtype)
        loss = weights * loss.masked_fill((weights == 0) & ~loss.isfinite(), 0.0)
        if reduction == "mean":
            return ratio(loss.sum(), weights.sum())
    return loss if reduction == "none" else getattr(loss, reduction)()


def weighted_reduce(loss: torch.Tensor, reduction: str, weights=None, terms=None) -> torch.Tensor:
    """The losses of samples, or of the views of samples, reduced as in `reduce`.

    Args:
        loss: ``[N]`` or ``[N, V]``.
        weights: of the samples, ``[N]``, or None. A weight of 0 leaves out a loss that is not
            finite.
        terms: how often each loss counts in the denominator of the mean, in the shape of loss. None
            is 1.
    """
    if weights is not None:
        weights = weights.to(loss.dtype).view(-1, *[1] * (loss.dim() - 1))
        loss = weights * loss.masked_fill((weights == 0) & ~loss.isfinite(), 0.0)
    if reduction != "mean" or (weights is None and terms is None):
        return reduce(loss, reduction)
    terms = torch.ones_like(loss) if terms is None else terms.to(loss.dtype)
    return ratio(loss.sum(), (terms if weights is None else weights * terms).sum())


def ratio(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """``total / count``, of numbers. Over nothing it is NaN, with a gradient of 0."""
    nothing = count.detach() == 0
    return (total / count.masked_fill(nothing, 1.0)).masked_fill(nothing, float("nan"))


def with_metrics(
    loss,
    reduction,
    logits,
    target,
    metrics,
    similarity_of=None,
    *,
    plain=None,
    lse=None,
    weights=None,
):
    """The loss reduced, and with `metrics` a dictionary of metrics beside it.

    The metrics are the top-1 accuracy, the mean similarity of the positives, and the negatives'
    log-sum-exp of each row where it is given.

    Args:
        loss: ``[..., M]``.
        logits: ``[..., M, N]``.
        target: the column of each row's positive, ``[..., M]``.
        similarity_of: what turns a logit into a similarity; None is the identity.
        plain: the logits whose positives are reported, ``[..., M, N]``. None is `logits`.
        lse: the negatives' log-sum-exp of each row, ``[..., M]``, or None.
        weights: the shape of loss, or None.
    """
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
        accuracy = reduce(hit, "mean", weights)
        mean = reduce(similarity.to(loss.dtype), "mean", weights)
    found = {"accuracy": accuracy, "positive_similarity": mean}
    return loss, found if lse is None else found | {"logsumexp": lse.detach()}


def both_directions(forward, backward, reduction, target, metrics, plain=None, weights=None):
    """The mean of the losses and of the metrics of two directions.

    Args:
        forward, backward: ``(loss [N], logits [N, N], lse [N])``.
        target: ``[N]``.
        plain: the logits whose positives are reported, ``[N, N]``. None is the logits.
        weights: ``[N]``, or None.
    """
    loss = (forward[0] + backward[0]) / 2
    one = with_metrics(loss, reduction, forward[1], target, metrics, plain=plain, weights=weights)
    if not metrics:
        return one
    two = with_metrics(
        backward[0], reduction, backward[1], target, True, plain=plain, weights=weights
    )
    means = {name: (one[1][name] + two[1][name]) / 2 for name in one[1]}
    return one[0], means | {"logsumexp": torch.stack([forward[2], backward[2]]).detach()}
