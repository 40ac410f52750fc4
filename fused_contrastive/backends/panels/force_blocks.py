"""The force family on some rows against some columns, which need not be the same points.

Over ranks no process has all columns at once. What is found out about a row is merged block after
block: log-sum-exps, and sums of exponentials relative to their running maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._force_field import wide
from ._panel import PANEL
from ._running_sum import finite

COLUMNS = 16384
"""A tile has at most this many columns, so that it has more than a few rows."""


class Tile(NamedTuple):
    """The distances between some rows and some columns of some groups, in units of the scale."""

    g: slice
    i: slice
    j: slice
    d: Tensor  # [|g|, |i|, |j|]
    diagonal: int | None  # where self pairs are, as for torch.diagonal

    def log_kernel(self, factor: Tensor, mask: bool) -> Tensor:
        """``-f d``, of the shape of d; with `mask` it is -inf at self pairs."""
        s = self.d * -factor
        if mask and self.diagonal is not None:
            s.diagonal(self.diagonal, 1, 2).fill_(-math.inf)
        return s

    def log_affinity(self, factor: Tensor, R: Tensor, C: Tensor, floor: float) -> Tensor:
        """The log affinities, of the shape of d, from R ``[|g|, |i|]`` and C ``[|g|, |j|]``."""
        total = R.unsqueeze(2) + C.unsqueeze(1)
        a = (self.d * -factor).sub_(total, alpha=0.5)
        if floor > -math.inf:
            a = a.clamp_min_(floor)
        if self.diagonal is not None:
            a.diagonal(self.diagonal, 1, 2).fill_(-math.inf)
        return a


def tiles(x: Tensor, y: Tensor, scale: Tensor, itself: int | None) -> Iterator[Tile]:
    """Tiles that together hold every pair of a row and a column once.

    Args:
        x, y: rows ``[G, m, D]`` and columns ``[G, n, D]``.
        scale: ``[G]``.
        itself: row i is the column ``i + itself``; None: no row is a column.
    """
    (G, m, _), n = x.shape, y.shape[1]
    if G * m * n == 0:
        return
    panel = PANEL if x.device.type == "cpu" else 32 * PANEL
    groups = max(1, panel // (m * n))
    width = min(n, COLUMNS)
    height = min(m, max(1, panel // width))
    for first in range(0, G, groups):
        g = slice(first, min(first + groups, G))
        unit = wide(scale[g])[:, None, None]
        for top in range(0, m, height):
            i = slice(top, min(top + height, m))
            rows = wide(x[g, i])
            for left in range(0, n, width):
                j = slice(left, min(left + width, n))
                mode = "donot_use_mm_for_euclid_dist"
                d = torch.cdist(rows, wide(y[g, j]), compute_mode=mode) / unit
                yield Tile(g, i, j, d, None if itself is None else top - left + itself)


def add_exponentials(top: Tensor, total: Tensor, a: Tensor) -> None:
    """Add ``sum_j exp(a_ij)`` to sums that are kept as ``total exp(top)``, in their memory.

    Args:
        top, total: ``[G, m]``, views of what is kept.
        a: ``[G, m, n]`` with n > 0.
    """
    larger = torch.maximum(top, a.amax(2))
    shift = finite(larger)
    terms = (a - shift.unsqueeze(2)).exp_()
    total.mul_((top - shift).exp_()).add_(terms.sum(2))
    top.copy_(larger)
