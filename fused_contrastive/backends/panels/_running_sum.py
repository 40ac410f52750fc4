"""Sums of exponentials relative to their running maximum, in torch operations."""

from __future__ import annotations

import torch
from torch import Tensor


def finite(lse: Tensor) -> Tensor:
    """Log-sum-exps of any shape with 0 in place of -inf, which stands for no candidates.

    Every exp(s - lse) of such a row is then exp(-inf) = 0.
    """
    return lse.masked_fill(lse == float("-inf"), 0.0)


class RunningSum:
    """Sums of exponentials ``[G, size]`` in parts, relative to their running maximum."""

    def __init__(
        self,
        like: Tensor,  # any shape; gives dtype and device
        G: int,
        size: int,
    ):
        self.maximum = like.new_full((G, size), float("-inf"))
        self.total = like.new_zeros((G, size))

    def add(self, place, s: Tensor, dim: int) -> Tensor:
        """Add the sum of exp(s) along `dim` at `place`, and return the terms over the new maximum.

        Args:
            place: an index of ``[G, size]``.
            s: ``[g, m, n]``, whose sum along `dim` has the shape of that place.
            dim: 1 or 2.
        """
        old = self.maximum[place]
        top = torch.maximum(old, s.amax(dim))
        shift = top.masked_fill(top.isinf(), 0.0)
        terms = torch.sub(s, shift.unsqueeze(dim)).exp_()
        self.total[place] = self.total[place] * torch.exp(old - shift) + terms.sum(dim)
        self.maximum[place] = top
        return terms

    def log(self) -> Tensor:
        """The logarithm, and what its rounding has lost (Knuth's two-sum): ``[2, G, size]``."""
        x, y = self.maximum.masked_fill(self.maximum.isinf(), 0.0), self.total.log()
        lse = x + y
        added = lse - x
        low = (x - (lse - added)) + (y - added)
        return torch.stack([lse, low.masked_fill_(~lse.isfinite(), 0.0)])
