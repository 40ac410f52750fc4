"""Kernels for groups whose matrix of distances one program holds in registers: `force_group`, `distance_group`."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LN2, LOG2E, NEG_INF, finite
from .force_common import (
    log_affinity,
    log_sum,
    safe_scale,
    side_sums,
    slope,
    square_sums,
    store_product,
    tile_distances,
)


@triton.jit
def transpose_points(
    x, points, P, D, features, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """The P <= BLOCK points x ``[P, D]`` of a group to points ``[features, BLOCK]``, zeros past P and D."""
    places = tl.arange(0, BLOCK)
    for k in range(0, features, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        kept = (places < P)[:, None] & (columns < D)[None, :]
        tile = tl.load(x + places.to(tl.int64)[:, None] * D + columns[None, :], mask=kept, other=0.0).to(ACC)
        tl.store(points + columns.to(tl.int64)[:, None] * BLOCK + places[None, :], tl.trans(tile))
    tl.debug_barrier()  # the whole group is there for every thread


@triton.jit(do_not_specialize=["P", "rows", "negatives"])
def force_group(
    x, inverse_temperatures, scale, weight, points, force, log_norm, lse_rows, lse_cols, shift, sums,
    P, D, rows, negatives,
    K: tl.constexpr, MEAN: tl.constexpr, ALL_ROWS: tl.constexpr, MASK: tl.constexpr, RMS: tl.constexpr,
    SEPARATE: tl.constexpr, SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr, CLIP: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The whole of force_ops.force_forward for groups of P <= BLOCK_N points, one program each. Rows are the first BLOCK_M points: all of
    them with ALL_ROWS, MEAN or RMS. MEAN: the scale is computed and written, else read. `points`: scratch ``[G, features, BLOCK_N]``,
    this group's part transposed by its own program.

    Distances and summed weights stay in registers, one temperature's affinities at a time beside them.
    Flops per group: 3 BLOCK_M BLOCK_N D for the distances, 2 or (RMS) 3 exponentials per pair and temperature, 2 BLOCK_M BLOCK_N D
    (SEPARATE: K times) for the product. Bytes per group: x read twice, the scratch written and read, ``rows D`` written.
    Predicted (no GPU has run it): 40 % of the part's float32 instruction rate in the distances, two instructions per difference, which
    for 256 groups of 128 points of 256 features is 0.2 ms on an H200.
    """
    G = tl.num_programs(0).to(tl.int64)
    g = tl.program_id(0).to(tl.int64)
    features = tl.cdiv(D, BLOCK_K) * BLOCK_K
    x += g * P * D
    points += g * features * BLOCK_N
    transpose_points(x, points, P, D, features, ACC, BLOCK_N, BLOCK_K)
    d = tile_distances(points, 0, 0, features, BLOCK_N, CLIP, ACC, BLOCK_M, BLOCK_N, BLOCK_K)

    i = tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_N)
    inside = j < P
    negative = j < negatives
    itself = i[:, None] == j[None, :]
    size = P.to(ACC)
    if MEAN:
        kept = tl.where(inside[None, :] & (i < P)[:, None], d, 0.0)
        s = tl.sum(tl.sum(kept, 1), 0) / (size * size)
        tl.store(scale + g, s)
    else:
        s = tl.load(scale + g)
    s = safe_scale(s)
    w = tl.zeros((BLOCK_N,), ACC)
    if weight is not None:
        w = tl.load(weight + g * P + j, mask=inside, other=0.0)
    R_count = P if ALL_ROWS else rows
    total = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for k in range(K):
        factor = tl.load(inverse_temperatures + k) / s * LOG2E
        kernel = tl.where(inside[None, :], d * -factor, NEG_INF)
        if MASK:
            kernel = tl.where(itself, NEG_INF, kernel)
        R = log_sum(kernel, 1)
        tl.store(lse_rows + (k * G + g) * R_count + i, R * LN2, mask=i < R_count)
        if ALL_ROWS:
            C = R
        else:
            C = log_sum(tl.where((i < rows)[:, None], kernel, NEG_INF), 0)
            tl.store(lse_cols + (k * G + g) * P + j, C * LN2, mask=inside)
        a = log_affinity(d, factor, R, C, itself, inside, SELF, FLOOR, DENOMINATOR)
        norm = tl.zeros((1,), ACC)
        if RMS:
            top, square = square_sums(d, a)
            logs = tl.where(i < P, finite(top) + tl.log2(square), NEG_INF)
            norm += log_sum(logs, 0) * 0.5 - tl.log2(size) - tl.log2(s)
        e, top_negative, top_positive, sum_negative, sum_positive = side_sums(a, negative, w, weight is not None)
        reach = top_negative + top_positive
        if SEPARATE and not RMS:
            norm += finite(tl.max(tl.where(i < rows, reach, NEG_INF), 0))
        place = (k * G + g) * rows + i
        plane = K * G * rows
        tl.store(shift + place, top_negative * LN2, mask=i < rows)
        tl.store(shift + plane + place, top_positive * LN2, mask=i < rows)
        tl.store(sums + place, sum_negative, mask=i < rows)
        tl.store(sums + plane + place, sum_positive, mask=i < rows)
        tl.store(log_norm + k * G + g + tl.arange(0, 1), norm * LN2)
        unit = tl.where(norm == NEG_INF, 0.0, tl.exp2(reach - finite(norm)))
        pull = tl.where(negative[None, :], -(unit * sum_positive)[:, None], (unit * sum_negative)[:, None])
        if SEPARATE:
            store_product(
                e * pull, x, force + (k * G + g) * rows * D, rows, P, D,
                ACC, EVEN_K, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            total = tl.fma(e, pull, total)
    if not SEPARATE:
        store_product(
            total, x, force + g * rows * D, rows, P, D,
            ACC, EVEN_K, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit(do_not_specialize=["P"])
def distance_group(
    x, g, points, dx, P, D, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The whole of force_ops.distance_gradient for groups of P <= BLOCK_N points, one program each; dx ``[G, P, D]`` in ACC.

    `points` as in `force_group`. The weights' row sums go to the diagonal, so that the gradient is one product.
    Flops per group: 3 BLOCK_N^2 D and 2 BLOCK_N^2 D. Bytes: those of `force_group`. Predicted (no GPU has run it): the time of
    `force_group` less its exponentials.
    """
    group = tl.program_id(0).to(tl.int64)
    features = tl.cdiv(D, BLOCK_K) * BLOCK_K
    x += group * P * D
    points += group * features * BLOCK_N
    transpose_points(x, points, P, D, features, ACC, BLOCK_N, BLOCK_K)
    d = tile_distances(points, 0, 0, features, BLOCK_N, 0.0, ACC, BLOCK_N, BLOCK_N, BLOCK_K)
    j = tl.arange(0, BLOCK_N)
    w = tl.where((j < P)[None, :], slope(d, tl.load(g + group)), 0.0)
    w = tl.where(j[:, None] == j[None, :], tl.sum(w, 1)[:, None], -w)
    store_product(
        w, x, dx + group * P * D, P, P, D, ACC, EVEN_K, PRECISION, INTERPRET, BLOCK_N, BLOCK_N, BLOCK_K,
    )  # fmt: skip
