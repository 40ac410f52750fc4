"""What every loss ends with: the loss of a row with one positive, the reduction, the metrics."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..autograd.over_ranks import sum_over_ranks
from ..distributed.groups import Ranks


class Direction(NamedTuple):
    """What the metrics read of the rows of one direction, in the shape of the loss.

    Both logits hold biases, but neither margin nor hardness.
    """

    # These are the logits of the positives.
    pos: torch.Tensor
    # This is the largest logit of the others, or None where no metrics are wanted.
    largest: torch.Tensor | None
    # This is the log-sum-exp of the negatives as the loss has it, or None where it has none.
    lse: torch.Tensor | None = None


class Outcome(NamedTuple):
    """The losses of all rows, and what their metrics need."""

    loss: torch.Tensor
    # These are the logits of the positives, in the shape of the loss.
    pos: torch.Tensor
    # Logits divided by this are cosines. It is None where nothing is normalised.
    to_cosine: torch.Tensor | None
    directions: tuple[Direction, ...]

    def reduced(
        self,
        reduction: str,
        metrics: bool,
        weights: torch.Tensor | None = None,
        group: Ranks | None = None,
    ):
        """The reduced loss; with `metrics` a pair of it and the dictionary of the metrics."""
        loss = reduce(self.loss, reduction, weights, group=group)
        if not metrics:
            return loss
        fixed, pos = None if weights is None else weights.detach(), self.pos.detach()
        values = [hits(x.pos.detach(), x.largest).to(loss.dtype) for x in self.directions]
        values.append((pos if self.to_cosine is None else pos / self.to_cosine.detach()).to(loss))
        if group is None:
            found = {}
            *shares, similarity = (reduce(x, "mean", fixed) for x in values)
        else:
            found = {"loss": loss.detach()} if loss.dim() == 0 else {}
            (*shares, similarity), found = global_means(values, fixed, found, group)
        accuracy = sum(shares) / len(shares)
        lses = [x.lse.detach() for x in self.directions if x.lse is not None]
        if lses:
            found["logsumexp"] = lses[0] if len(lses) == 1 else torch.stack(lses)
        return loss, {"accuracy": accuracy, "positive_similarity": similarity, **found}


def global_means(
    values: list[torch.Tensor],
    weights: torch.Tensor | None,  # of the shape of each value, or None
    of_ranks: dict[str, torch.Tensor],  # one number each
    group: Ranks,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The means of values over the rows of all ranks, and of numbers over the ranks, in one sum."""
    sums = [reduce(x, "sum", weights) for x in values]
    count = (
        sums[0].new_full((), values[0].numel()) if weights is None else weights.to(sums[0]).sum()
    )
    numbers = torch.stack([*sums, count, *of_ranks.values()])
    numbers = sum_over_ranks(numbers, group.encode()).unbind()
    *sums, count = numbers[: len(values) + 1]
    means = [x / group.size for x in numbers[len(values) + 1 :]]
    return [x / count for x in sums], dict(zip(of_ranks, means, strict=True))


def reduce(
    loss: torch.Tensor,  # [N], or [N, V] for V views of each sample
    reduction: str,
    weights: torch.Tensor | None = None,  # of the shape of loss, or [N]
    terms: torch.Tensor | None = None,  # of the shape of loss
    group: Ranks | None = None,
) -> torch.Tensor:
    """All losses, their mean (NaN over nothing) or their sum (0 over nothing), as `reduction` asks.

    With weights they are ``w l``, ``Σ w l / Σ w`` or ``Σ w l``. A weight of 0 leaves out a loss
    that is not finite. In the denominator of the mean a loss counts once, or as often as `terms`
    says. Over W ranks the denominator is that of all ranks, and sum and mean are W times what they
    are, so that the mean over the ranks is the sum or the mean over all rows.
    """
    if weights is not None:
        weights = weights.to(loss.dtype)
        if weights.dim() < loss.dim():
            weights = weights.unsqueeze(1)
        loss = weights * loss.masked_fill((weights == 0) & ~loss.isfinite(), 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum() if group is None else group.size * loss.sum()
    if terms is not None:
        count = terms.to(loss.dtype) if weights is None else weights * terms.to(loss.dtype)
    elif weights is None:
        if group is None:
            return loss.mean()
        count = loss.new_full((), loss.numel())
    else:
        count = weights if weights.shape == loss.shape else weights * torch.ones_like(loss)
    if group is None:
        return ratio(loss.sum(), count.sum())
    return group.size * loss.sum() / sum_over_ranks(count.sum(), group.encode())


def ratio(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """``total / count``, of numbers ``[]``. Over nothing it is NaN, with a gradient of 0.

    On one rank of many a gradient of NaN would become that of all.
    """
    nothing = count.detach() == 0
    return (total / count.masked_fill(nothing, 1.0)).masked_fill(nothing, float("nan"))


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
