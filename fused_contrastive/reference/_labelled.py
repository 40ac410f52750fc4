"""The dense form of losses whose positives are the columns of equal labels."""

from __future__ import annotations

from ._dense import masked_logsumexp, maximum
from ._reduction import ratio, weighted_reduce


def one_direction(logits, labels, columns, ignore_index):
    """The losses of the rows, the positives, and the logits of the candidates.

    Args:
        logits: ``[M, N]``.
        labels: of the rows, ``[M]``.
        columns: labels of the columns, ``[N]``.
        ignore_index: a label that leaves out rows and columns, or None.

    Returns:
        ``(loss [M], positive [M, N], logits [M, N])``.
    """
    positive = labels.unsqueeze(1) == columns
    if ignore_index is not None:
        positive = positive & (labels != ignore_index).unsqueeze(1)
        logits = logits.masked_fill(columns == ignore_index, float("-inf"))
    log_prob = logits - masked_logsumexp(logits, 1).unsqueeze(1)
    total = log_prob.masked_fill(~positive, 0.0).sum(1)
    return -total / positive.sum(1).clamp_min(1), positive, logits


def kept(x, labels, ignore_index):
    """``x [N, ...]`` with zeros in the place of rows that are ignored."""
    if ignore_index is None:
        return x
    return x.masked_fill((labels == ignore_index).view(-1, *[1] * (x.dim() - 1)), 0.0)


def with_labels(logits, labels, ignore_index, reduction, metrics, weights, shown=None):
    """The mean over the directions of the losses, and with `metrics` a dictionary beside it.

    Args:
        logits: ``[M, N]``.
        labels: of rows and columns, ``([M], [N])``.
        weights: ``([M],)``, or ``([M], [N])`` for both directions. Each may be None.
        shown: the logits whose mean over the positives is reported, ``[M, N]``; None: `logits`.
    """
    shown = logits if shown is None else shown
    both = (logits, *labels, shown), (logits.T, *labels[::-1], shown.T)
    losses, found = [], []
    for (s, rows, columns, plain), w in zip(both, weights, strict=False):
        loss, positive, s = one_direction(s, rows, columns, ignore_index)
        losses.append(weighted_reduce(loss, reduction, w, positive.any(1)))
        found.append((s.detach(), plain.detach(), positive))
    loss = sum(losses) / len(losses)
    return (loss, found_metrics(found, weights)) if metrics else loss


def found_metrics(directions, weights):
    """The share of rows whose largest logit is a positive's, and the mean over all positives.

    Args:
        directions: ``(logits, plain logits, positive)`` of each, ``[M, N]``. Logits are -inf where
            there is no candidate.
        weights: ``[M]`` of each, or None.
    """
    hits, totals, counts = [], [], []
    for (s, plain, positive), w in zip(directions, weights, strict=False):
        matched = positive.any(1)
        best, largest = (maximum(s.masked_fill(x, float("-inf")), 1) for x in (~positive, positive))
        hit = ((best >= largest) & matched).to(s.dtype)
        hits.append(weighted_reduce(hit, "mean", w, matched))
        totals.append(weighted_reduce(plain.masked_fill(~positive, 0.0).sum(1), "sum", w))
        counts.append(weighted_reduce(positive.sum(1).to(s.dtype), "sum", w))
    return {
        "accuracy": sum(hits) / len(hits),
        "positive_similarity": ratio(sum(totals), sum(counts)),
    }
