"""What the losses share: reduction and metrics, the one-positive form, rows as the products read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import checks, reference
from ..autograd.similarity import Result
from ..dtypes import accumulation_dtype, matrix_dtype


class Outcome(NamedTuple):
    """The losses, the positives' logits, what divides these to similarities (None: nothing), and of each direction the positives' logits
    beside the largest of the others, with biases but without margin and hardness."""

    loss: torch.Tensor
    pos: torch.Tensor
    unit: torch.Tensor | None
    ranks: tuple[tuple[torch.Tensor, torch.Tensor | None], ...]

    def reduced(self, reduction: str, metrics: bool, weights: torch.Tensor | None = None):
        """Reduced loss, with `metrics` the dictionary."""
        loss = reference.reduce(self.loss, reduction, weights)
        if not metrics:
            return loss

        def mean(x):
            return reference.reduce(
                x.to(loss.dtype), "mean", None if weights is None else weights.detach()
            )

        pos = self.pos.detach()
        shares = [mean(hits(own.detach(), largest)) for own, largest in self.ranks]
        similarity = mean(pos if self.unit is None else pos / self.unit.detach())
        return loss, {"accuracy": sum(shares) / len(shares), "positive_similarity": similarity}


def finish(loss, reduction, metrics, result: Result, pos, scale=None, columns=False, weights=None):
    """Reduced loss, with `metrics` the dictionary; `scale` turns positive logits into cosines."""
    ranks = ((pos, result.row_max), (pos, result.col_max)) if columns else ((pos, result.row_max),)
    return Outcome(loss, pos, scale, ranks).reduced(reduction, metrics, weights)


def hits(pos: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where pos is at least the largest other logit; equal up to the rounding of differently ordered sums is equal."""
    slack = 16 * torch.finfo(pos.dtype).eps * torch.maximum(pos.abs(), other.abs())
    return (pos >= other) | (pos + slack >= other) & other.isfinite()


def one_positive(lse: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    """``softplus(lse - pos)``; NaN or infinite, as cross entropy, where a logit is infinite."""
    return F.softplus(lse - pos + 0 * (pos.clamp_min(0) + lse.clamp_min(0)), threshold=40)


def two_sets(name_a, a, name_b, b, dim=2):
    checks.embeddings(name_a, a, dim=dim)
    checks.embeddings(name_b, b, dim=dim, like=(name_a, a))
    checks.same_shape(name_b, b, name_a, a)


def rounded(x: torch.Tensor, normalize: bool) -> torch.Tensor:
    """x, normalised in its accumulation dtype where asked, in the matrix dtype: what the products read."""
    if not normalize:
        return x.to(matrix_dtype(x))
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1).to(matrix_dtype(x))


def exact_rows(x: torch.Tensor, normalize: bool) -> torch.Tensor:
    """x, normalised where asked, in the accumulation dtype but rounded to what the products read; gradients are not rounded.

    For losses that add up the gradients of several terms: with `similarity(..., dtype=matrix_dtype(x))` all of them arrive, and cancel, in
    the accumulation dtype.
    """
    z = x.to(accumulation_dtype(x.dtype))
    return as_read(F.normalize(z, dim=-1) if normalize else z, matrix_dtype(x))


def as_read(z: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """z rounded to the matrix dtype, in its own dtype; its gradient is that of z."""
    if z.dtype == dtype:
        return z
    fixed = z.detach()
    return z + (
        fixed.to(dtype).to(z.dtype) - fixed
    )  # exact: they differ by less than a factor of two, or one is 0
