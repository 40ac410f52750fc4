"""Sums of exponentials relative to their running maximum, in torch operations."""

from __future__ import annotations

import torch


def finite(lse: torch.Tensor) -> torch.Tensor:
    """lse with 0 in place of −inf (no candidates): every exp(s − lse) of such a row is then exp(−inf) = 0."""
    return lse.masked_fill(lse == float("-inf"), 0.0)


class RunningSum:
    """Sums of exponentials ``[G, size]`` that arrive in parts, relative to their running maximum."""

    def __init__(self, like: torch.Tensor, G: int, size: int):
        self.maximum = like.new_full((G, size), float("-inf"))
        self.total = like.new_zeros((G, size))

    def add(self, place, s: torch.Tensor, dim: int) -> torch.Tensor:
        """Add Σ exp(s) along `dim` at `place`; returns the terms, relative to the new maximum."""
        old = self.maximum[place]
        top = torch.maximum(old, s.amax(dim))
        shift = top.masked_fill(top.isinf(), 0.0)
        terms = torch.sub(s, shift.unsqueeze(dim)).exp_()
        self.total[place] = self.total[place] * torch.exp(old - shift) + terms.sum(dim)
        self.maximum[place] = top
        return terms

    def log(self) -> torch.Tensor:
        """The logarithm, and what its rounding lost (Knuth's two-sum): ``[2, G, size]``."""
        x, y = self.maximum.masked_fill(self.maximum.isinf(), 0.0), self.total.log()
        lse = x + y
        added = lse - x
        low = (x - (lse - added)) + (y - added)
        return torch.stack([lse, low.masked_fill_(~lse.isfinite(), 0.0)])
