"""The force on the negatives of a rank from the points of all ranks.

Contract
--------
Every rank calls with its own points ``x [G, P, D]``, of which the first ``rows`` are negatives. G
and D are those of all ranks; P and ``rows`` are its own, and may be 0. The result is that of
``force_forward`` (ops/force.py) with the points of all ranks, ``all_rows`` and no weights, for the
rows of this rank. Everything is computed in torch operations, on any device.

``mean_distance_over_ranks`` returns the mean of d over all pairs of all ranks' points, ``[G]``, and
its backward op the gradient ``[G, P, D]`` of the sum over all ranks of ``<g, mean>``.

``force_over_ranks`` takes ``scale [G]``, the same on all ranks, and returns

    force [S, G, rows, D]    as ``force_forward``
    peak [S, G]              the largest absolute value of the force on any rank
    sizes [W, 2]             the negatives and the points of each rank, int64 on the CPU

The distances of two shards are computed by one of both ranks for the mean and the log-sum-exps, and
by both for sums and forces. ``ranks`` is `Ranks.encode`. Options are compared on the host first.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends.panels._force_field import unit, wide
from ..backends.panels._running_sum import finite
from ..backends.panels.force import _log_squares
from ..backends.panels.force_blocks import add_exponentials, tiles
from ..distributed.collectives import add_over_ranks, gather_rows
from ..distributed.exchange import Exchange, Result
from ..distributed.groups import Ranks, agree
from ..dtypes import accumulation_dtype
from ._library import LIBRARY, implement_over_ranks

LIBRARY.define("mean_distance_over_ranks(Tensor x, str ranks) -> (Tensor, Tensor)")
LIBRARY.define(
    "mean_distance_over_ranks_backward(Tensor g, Tensor x, Tensor sizes, str ranks) -> Tensor"
)
LIBRARY.define(
    "force_over_ranks(Tensor x, Tensor inverse_temperatures, Tensor scale, SymInt rows, bool mask, "
    "float floor, bool rms, bool separate, str ranks) -> (Tensor, Tensor, Tensor)"
)


def mean_distance(x: Tensor, encoded: str) -> tuple[Tensor, Tensor]:
    """The op ``mean_distance_over_ranks``."""
    ranks, (G, P, D) = Ranks.decode(encoded), x.shape
    sizes = [n for _, n in agree(ranks, P, P, f"mean distance {x.dtype} {G} {D}")]
    one, total = wide(x.new_ones(G)), wide(x.new_zeros(G))

    def compute(visit, met):
        for tile in tiles(x[:, visit.rows], met[0], one, None):
            total[tile.g] += tile.d.sum((1, 2)) * (1 if visit.own else 2)
        return []

    Exchange(ranks.process_group, ranks.strategy, sizes, True, ()).run([x], compute)
    add_over_ranks(total, ranks.process_group)
    mean = total / max(sum(sizes), 1) ** 2
    return mean.to(accumulation_dtype(x.dtype)), torch.tensor(sizes)


def mean_distance_backward(g: Tensor, x: Tensor, table: Tensor, encoded: str) -> Tensor:
    """The op ``mean_distance_over_ranks_backward``."""
    ranks, sizes = Ranks.decode(encoded), table.tolist()
    g = add_over_ranks(wide(g).clone(), ranks.process_group) * 2 / max(sum(sizes), 1) ** 2
    one, dx = torch.ones_like(g), torch.zeros_like(wide(x))

    def compute(visit, met):
        rows, y = x[:, visit.rows], met[0]
        mine = dx[:, visit.rows]
        home = dx if visit.own else torch.zeros_like(wide(y))
        for tile in tiles(rows, y, one, None):
            at, to = (tile.g, tile.i), (tile.g, tile.j)
            w = torch.where(tile.d > 0, g[tile.g, None, None] / tile.d, 0.0)
            here, there = wide(rows[at]), wide(y[to])
            origin = here[:, :1].clone()
            here, there = here - origin, there - origin
            mine[at] += w.sum(2, keepdim=True) * here - w @ there
            if not visit.own:
                home[to] += w.sum(1).unsqueeze(2) * there - w.mT @ here
        return [home]

    results = (Result("sum", x.shape[2], dx.dtype),)
    Exchange(ranks.process_group, ranks.strategy, sizes, True, results).run([x], compute)
    return dx.to(x.dtype)


class Points:
    """This rank's points, and how they meet those of all ranks."""

    def __init__(self, x: Tensor, scale: Tensor, rows: int, ranks: Ranks, sizes):
        self.x, self.rows, self.ranks, self.sizes = x, rows, ranks, sizes
        self.scale = scale.masked_fill(scale == 0, 1.0)
        self.sides = slice(0, rows), slice(rows, x.shape[1])

    def log_sums(self, inverse: Tensor, mask: bool) -> Tensor:
        """R of this rank's points over all points, wide: ``[G, P, K]``."""
        x, K = self.x, len(inverse)
        R = wide(x.new_zeros((*x.shape[:2], K))).fill_(-math.inf)

        def compute(visit, met):
            mine = R[:, visit.rows]
            home = R if visit.own else R.new_full((*met[0].shape[:2], K), -math.inf)
            itself = 0 if visit.own else None
            for tile in tiles(x[:, visit.rows], met[0], self.scale, itself):
                for k in range(K):
                    s = tile.log_kernel(inverse[k], mask)
                    place = mine[tile.g, tile.i, k]
                    place.copy_(torch.logaddexp(place, s.logsumexp(2)))
                    if not visit.own:
                        place = home[tile.g, tile.j, k]
                        place.copy_(torch.logaddexp(place, s.logsumexp(1)))
            return [home]

        sizes, results = [n for _, n in self.sizes], (Result("lse", K, R.dtype),)
        group, strategy, *_ = self.ranks.process_group, self.ranks.strategy
        Exchange(group, strategy, sizes, True, results).run([x], compute)
        return R

    def meet(self, R: Tensor, step, row_sides=(0, 1)) -> None:
        """Call ``step(side, row_side, tile, y, C)`` for all columns of each side.

        y ``[G, n, D]`` and C ``[G, n, K]`` are the points and the R of the columns of a visit.
        """
        for side, columns in enumerate(self.sides):

            def compute(visit, met, side=side):
                y, C = met
                for row_side in row_sides:
                    itself = 0 if visit.own and row_side == side else None
                    x = self.x[:, self.sides[row_side]]
                    for tile in tiles(x, y, self.scale, itself):
                        step(side, row_side, tile, y, C)
                return []

            sizes = [n if side == 0 else p - n for n, p in self.sizes]
            plan = Exchange(self.ranks.process_group, self.ranks.strategy, sizes, False, ())
            plan.run([self.x[:, columns].contiguous(), R[:, columns].contiguous()], compute)


def forward(
    x: Tensor,
    inverse: Tensor,
    scale: Tensor,
    rows: int,
    mask: bool,
    floor: float,
    rms: bool,
    separate: bool,
    encoded: str,
) -> tuple[Tensor, ...]:
    """The op ``force_over_ranks``."""
    ranks, K, (G, P, D) = Ranks.decode(encoded), len(inverse), x.shape
    call = f"force {mask} {floor} {rms} {separate} {x.dtype} {K} {G} {D}"
    sizes = agree(ranks, rows, P, call)
    S = K if separate else 1
    negatives, everyone = (sum(numbers) for numbers in zip(*sizes, strict=True))
    table = torch.tensor(sizes)
    if G * D * negatives * (everyone - negatives) == 0:
        return inverse.new_zeros((S, G, rows, D)), inverse.new_zeros((S, G)), table
    points, group = Points(x, scale, rows, ranks, sizes), ranks.process_group
    R = points.log_sums(inverse, mask)
    shift = R.new_full((2, K, G, rows), -math.inf)
    sums, apart, squares = torch.zeros_like(shift), shift.clone(), R.new_full((K, G), -math.inf)

    def affinity(row_side, tile, C, k):
        own = R[:, points.sides[row_side]]
        of_columns = C[tile.g, tile.j, k]
        return tile.log_affinity(inverse[k], own[tile.g, tile.i, k], of_columns, floor)

    def add(side, row_side, tile, y, C):
        for k in range(K):
            a = affinity(row_side, tile, C, k)
            if rms:
                place = squares[k, tile.g]
                place.copy_(torch.logaddexp(place, _log_squares(a, tile.d)))
            if row_side == 0:
                at = side, k, tile.g, tile.i
                add_exponentials(shift[at], sums[at], a)
                if separate:
                    a.masked_fill_(tile.d == 0, -math.inf)
                    apart[at] = torch.maximum(apart[at], a.amax(2))

    points.meet(R, add, (0, 1) if rms else (0,))
    log_norm = R.new_zeros((K, G))
    if rms:
        of_ranks = gather_rows(squares, group).view(-1, K, G)
        log_norm = of_ranks.logsumexp(0) / 2 - math.log(everyone)
    elif separate:
        exponents = torch.cat([apart + shift.flip(0), R.new_full((2, K, G, 1), -math.inf)], 3)
        log_norm = exponents.amax((0, 3))
        dist.all_reduce(log_norm, dist.ReduceOp.MAX, group=group)
        log_norm = finite(log_norm)
    units, force = unit(shift, log_norm), R.new_zeros((S, G, rows, D))

    def push(side, row_side, tile, y, C):
        at = tile.g, tile.i
        weights = []
        for k in range(K):
            a = affinity(row_side, tile, C, k)
            e = a.sub_(finite(shift[side, k][at]).unsqueeze(2)).exp_()
            e.mul_((units[k][at] * sums[1 - side, k][at] * (2 * side - 1)).unsqueeze(2))
            weights.append(e.masked_fill_(tile.d == 0, 0.0))
        here, there = wide(x[:, :rows][at]), wide(y[tile.g, tile.j])
        origin = here[:, :1].clone()
        here, there = here - origin, there - origin
        for s, w in enumerate(weights if separate else [sum(weights[1:], weights[0])]):
            force[s][at] += w @ there - w.sum(2, keepdim=True) * here

    points.meet(R, push, (0,))
    peak = torch.cat([force.abs().flatten(2), R.new_zeros((S, G, 1))], 2).amax(2)
    dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
    return force.to(inverse.dtype), peak.to(inverse.dtype), table


implement_over_ranks("mean_distance_over_ranks", mean_distance)
implement_over_ranks("mean_distance_over_ranks_backward", mean_distance_backward)
implement_over_ranks("force_over_ranks", forward)
mean_distance_over_ranks = torch.ops.fused_contrastive.mean_distance_over_ranks.default
mean_distance_over_ranks_backward = (
    torch.ops.fused_contrastive.mean_distance_over_ranks_backward.default
)
force_over_ranks = torch.ops.fused_contrastive.force_over_ranks.default


@torch.library.register_fake("fused_contrastive::mean_distance_over_ranks", lib=LIBRARY)
def _(x, ranks):
    sizes = torch.empty((Ranks.decode(ranks).size,), dtype=torch.int64, device="cpu")
    return x.new_empty(x.shape[:1], dtype=accumulation_dtype(x.dtype)), sizes


@torch.library.register_fake("fused_contrastive::mean_distance_over_ranks_backward", lib=LIBRARY)
def _(g, x, sizes, ranks):
    return x.new_empty(x.shape)


@torch.library.register_fake("fused_contrastive::force_over_ranks", lib=LIBRARY)
def _(x, inverse, scale, rows, mask, floor, rms, separate, ranks):
    G, _, D = x.shape
    S = inverse.shape[0] if separate else 1
    sizes = torch.empty((Ranks.decode(ranks).size, 2), dtype=torch.int64, device="cpu")
    return inverse.new_empty((S, G, rows, D)), inverse.new_empty((S, G)), sizes
