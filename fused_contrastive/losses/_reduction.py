"""What every loss ends with: the loss of a row with one positive, the reduction, the metrics."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Outcome(NamedTuple):
    """The losses of all rows, and what their metrics need."""

    loss: torch.Tensor
    # These are the logits of the positives, in the shape of the loss.
    pos: torch.Tensor
    # Logits divided by this are cosines. It is None where nothing is normalised.
    to_cosine: torch.Tensor | None
    # Each direction has the logits of the positives and the largest of the others. Both hold
    # biases, but neither margin nor hardness. The largest is None where no metrics are wanted.
    ranks: tuple[tuple[torch.Tensor, torch.Tensor | None], ...]

    def reduced(self, reduction: str, metrics: bool, weights: torch.Tensor | None = None):
        """The reduced loss; with `metrics` a pair of it and the dictionary of the metrics."""
        loss = reduce(self.loss, reduction, weights)
        if not metrics:
            return loss

        def mean(x):
            fixed = None if weights is None else weights.detach()
            return reduce(x.to(loss.dtype), "mean", fixed)

        pos = self.pos.detach()
        shares = [mean(hits(own.detach(), largest)) for own, largest in self.ranks]
        similarity = mean(pos if self.to_cosine is None else pos / self.to_cosine.detach())
        return loss, {"accuracy": sum(shares) / len(shares), "positive_similarity": similarity}


def reduce(
    loss: torch.Tensor,  # [N], or [N, V] for V views of each sample
    reduction: str,
    weights: torch.Tensor | None = None,  # of the shape of loss, or [N]
    terms: torch.Tensor | None = None,  # of the shape of loss
) -> torch.Tensor:
    """All losses, their mean (NaN over nothing) or their sum (0 over nothing), as `reduction` asks.

    With weights they are ``w l``, ``Σ w l / Σ w`` or ``Σ w l``. A weight of 0 leaves out a loss
    that is not finite. In the denominator of the mean a loss counts once, or as often as `terms`
    says.
    """
    if weights is not None:
        weights = weights.to(loss.dtype)
        if weights.dim() < loss.dim():
            weights = weights.unsqueeze(1)
        loss = weights * loss.masked_fill((weights == 0) & ~loss.isfinite(), 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if terms is not None:
        count = terms.to(loss.dtype) if weights is None else weights * terms.to(loss.dtype)
    elif weights is None:
        return loss.mean()
    else:
        count = weights if weights.shape == loss.shape else weights * torch.ones_like(loss)
    return loss.sum() / count.sum()


def hits(pos: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where the positive's logit is at least the largest other one.

    Sums in another order round differently. Logits that are equal up to this rounding count as
    equal.
    """
    slack = 16 * torch.finfo(pos.dtype).eps * torch.maximum(pos.abs(), other.abs())
    return (pos >= other) | (pos + slack >= other) & other.isfinite()


def one_positive(lse: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    """``softplus(lse - pos)``, the loss of a row with one positive.

    Where a logit is infinite the loss is NaN or infinite, as that of the cross entropy is.
    """
    return F.softplus(lse - pos + 0 * (pos.clamp_min(0) + lse.clamp_min(0)), threshold=40)


def masked_logsumexp(s: torch.Tensor, dim: int) -> torch.Tensor:
    """logsumexp over `dim`, which is −inf and has a gradient of 0 where everything is −inf."""
    empty = (s == float("-inf")).all(dim, keepdim=True)
    return s.masked_fill(empty, 0.0).logsumexp(dim).masked_fill(empty.squeeze(dim), float("-inf"))


def merged(lses: list[torch.Tensor]) -> torch.Tensor:
    """The log-sum-exp ``[N]`` over disjoint candidates together, from that over each part."""
    return lses[0] if len(lses) == 1 else masked_logsumexp(torch.stack(lses), 0)
