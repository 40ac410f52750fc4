"""What the passes of the force family share in panels: row panels, distances and log affinities.

Sizes: ``G`` groups of ``P`` points, ``K`` temperatures, ``D`` features. A panel holds the pairs of
the rows in slice `i` with all points, for a few groups or for one. ops/force.py defines a, d, f, R
and C. What is called wide is in float64 where the device has it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...problem import ABSENT, ForceProblem
from ._panel import PANEL
from ._running_sum import finite


def row_panels(G: int, P: int, device: torch.device) -> list[tuple[slice, list[slice]]]:
    """``(groups, row panels)`` that together cover every pair once.

    Whole groups go together while one panel holds them. Otherwise each group has its own panels.
    """
    panel = PANEL if device.type == "cpu" else 32 * PANEL
    if P * P <= panel:
        step = panel // (P * P)
        return [(slice(g, min(g + step, G)), [slice(0, P)]) for g in range(0, G, step)]
    step = max(1, panel // P)
    rows = [slice(i, min(i + step, P)) for i in range(0, P, step)]
    return [(slice(g, g + 1), rows) for g in range(G)]


def first_rows(panels: list[slice], rows: int) -> list[slice]:
    """The parts of the panels below row `rows`."""
    return [slice(i.start, min(i.stop, rows)) for i in panels if i.start < rows]


def wide(x: Tensor) -> Tensor:
    """x in float64 where the device has it.

    An exponential loses as many digits as its exponent has, and an exponent may have three.
    """
    return x if x.device.type == "mps" else x.double()


def distances(x: Tensor, i: slice, clip: float) -> Tensor:
    """The distances of the rows `i` to all points, from differences, wide.

    Args:
        x: ``[G, P, D]``.
        clip: lower bound of the squared distance.

    Returns:
        ``[G, |i|, P]``.
    """
    x = wide(x)
    d = torch.cdist(x[:, i], x, compute_mode="donot_use_mm_for_euclid_dist")
    return d.clamp_min_(math.sqrt(clip)) if clip > 0 else d


def centred(x: Tensor) -> Tensor:
    """x ``[G, P, D]`` less the mean of its group, wide, and exactly 0 where all points are equal.

    No force depends on that mean.
    """
    x = wide(x)
    x = x - x[:, :1]
    return x - x.mean(1, keepdim=True)


def self_pairs(x: Tensor, i: slice) -> Tensor:
    """The pairs of the rows `i` with themselves: a view ``[G, |i|]`` of a panel ``[G, |i|, P]``."""
    return x.diagonal(i.start, 1, 2)


def differences(y: Tensor, i: slice, w: Tensor, d: Tensor) -> Tensor:
    """``sum_j w_ij (y_j - y_i)``, in which equal points add exactly nothing.

    The weights of equal points may exceed all others by far.

    Args:
        y: centred points ``[G, P, D]``.
        w: weights of the rows `i`, ``[G, |i|, P]``, overwritten.
        d: distances ``[G, |i|, P]``.

    Returns:
        ``[G, |i|, D]``.
    """
    w = w.masked_fill_(d == 0, 0.0)
    return w @ y - w.sum(2, keepdim=True) * y[:, i]


def unit(shift: Tensor, log_norm: Tensor) -> Tensor:
    """``exp(shift_neg + shift_pos - log_norm)``, 0 where log_norm is -inf.

    Args:
        shift: ``[2, ..., rows]``, of the negative and of the positive side.
        log_norm: ``[...]``.

    Returns:
        ``[..., rows]``.
    """
    log_norm = log_norm.unsqueeze(-1)
    return (shift.sum(0) - finite(log_norm)).exp().masked_fill_(log_norm == -math.inf, 0.0)


class Field:
    """The log affinities of some groups, a panel and a temperature at a time, wide."""

    def __init__(self, problem: ForceProblem):
        self.problem = problem
        self.x = problem.x
        # A row of weights stands against every row of a panel: [G, 1, P].
        self.weight = None if problem.weight is None else problem.weight.unsqueeze(1)
        self.sides = (slice(0, problem.negatives), slice(problem.negatives, problem.x.shape[1]))
        self.scale = self.place = self.panel = ABSENT

    def rescale(self, scale: Tensor) -> None:
        """Count distances in units of the scale ``[G]`` from here on."""
        self.scale, self.place = scale, None

    def distances(self, i: slice) -> Tensor:
        """d ``[G, |i|, P]`` in units of the scale, where there is one.

        The distances of the last panel are kept.
        """
        if self.place != (i.start, i.stop):
            self.place = (i.start, i.stop)
            self.panel = distances(self.x, i, self.problem.clip)
            if self.scale is not None:
                self.panel = self.panel / self.scale[:, None, None]
        return self.panel

    def log_kernel(self, i: slice, k: int) -> Tensor:
        """``-f d`` of the rows `i`, ``[G, |i|, P]``; with `mask` it is -inf at self pairs."""
        s = self.distances(i) * -self.problem.inverse_temperatures[k]
        if self.problem.mask:
            self_pairs(s, i).fill_(-math.inf)
        return s

    def log_affinity(self, i: slice, k: int, R: Tensor, C: Tensor) -> Tensor:
        """a of the rows `i`, ``[G, |i|, P]``.

        Args:
            R: log-sum-exps of those rows, ``[G, |i|]``.
            C: log-sum-exps of all columns, ``[G, P]``.
        """
        problem = self.problem
        total = R.unsqueeze(2) + C.unsqueeze(1)
        if problem.denominator > -math.inf:
            total.clamp_min_(problem.denominator)
        a = (self.distances(i) * -problem.inverse_temperatures[k]).sub_(total, alpha=0.5)
        if problem.floor > -math.inf:
            a = a.clamp_min(problem.floor)
        self_pairs(a, i).fill_(problem.self_logit)
        return a
