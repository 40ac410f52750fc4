"""Kernels for small groups, the whole of one by one program: `force_group`, `distance_group`."""

from __future__ import annotations

import triton
import triton.language as tl

from .force_math import (
    add_products,
    level_of,
    log_affinity,
    log_kernel,
    log_total,
    merge,
    safe_scale,
    side_sums,
    slope,
    split_factor,
    square_sums,
    sum_exp,
    tile_columns,
    tile_distances,
    tops_apart,
    unit_and_excess,
)
from .tile_math import NEG_INF, finite


@triton.jit
def transpose_points(
    x, points, P, D, features, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """The P <= BLOCK points x ``[P, D]`` of a group to points ``[features, BLOCK]``, zeros past P and D."""
    places = tl.arange(0, BLOCK)
    for k in range(0, features, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        kept = (places < P)[:, None] & (columns < D)[None, :]
        tile = tl.load(
            x + places.to(tl.int64)[:, None] * D + columns[None, :], mask=kept, other=0.0
        ).to(ACC)
        tl.store(points + columns.to(tl.int64)[:, None] * BLOCK + places[None, :], tl.trans(tile))
    tl.debug_barrier()  # the whole group is there for every thread


@triton.jit
def centre_points(points, P, features, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """In place: points ``[features, BLOCK]`` less the first point, less the mean of that, which no force depends on; zeros past P."""
    j = tl.arange(0, BLOCK)[None, :]
    for k in range(0, features, BLOCK_K):
        places = points + (k + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None] * BLOCK + j
        y = tl.load(places)
        y = tl.where(j < P, y - tl.sum(tl.where(j == 0, y, 0.0), 1)[:, None], 0.0)
        y = tl.where(j < P, y - (tl.sum(y, 1) / P)[:, None], 0.0)
        tl.debug_barrier()  # every thread has read what is overwritten
        tl.store(places, y)


@triton.jit
def group_product(
    w, points, out, first, rows, D, features, ACC: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """``w @ y`` to the rows first.. of out ``[rows, D]``: w ``[BLOCK_M, BLOCK_N]`` in memory, y the centred points, transposed."""
    tl.debug_barrier()  # the weights and the points are there for every thread
    rows_out = first + tl.arange(0, BLOCK_M)
    for k in range(0, D, BLOCK_D):
        columns = k + tl.arange(0, BLOCK_D)
        total = add_products(
            w, points, 0, 1, BLOCK_N, columns, (columns < features)[None, :], tl.zeros((BLOCK_M, BLOCK_D), ACC),
            False, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
        )  # fmt: skip
        kept = (rows_out < rows)[:, None] & (columns < D)[None, :]
        tl.store(out + rows_out.to(tl.int64)[:, None] * D + columns[None, :], total, mask=kept)


@triton.jit
def group_distances(
    points, distances, P, features, CLIP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes distances ``[BLOCK_N, BLOCK_N]`` of a group, its first P rows; returns the sum over its P x P pairs."""
    j = tile_columns(BLOCK_N)
    total = tl.zeros((BLOCK_M,), ACC)
    for first in range(0, P, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        d = tile_distances(
            points, first, 0, features, BLOCK_N, CLIP, ACC, BLOCK_M, BLOCK_N, BLOCK_K
        )
        tl.store(distances + i[:, None] * BLOCK_N + j[None, :], d)
        total += tl.sum(tl.where((i < P)[:, None] & (j < P)[None, :], d, 0.0), 1)
    tl.debug_barrier()  # they are there for every thread
    return tl.sum(total, 0)


@triton.jit
def group_lse(
    distances, lse_rows, lse_cols, row_lows, column_lows, high, low, P, rows,
    ALL_ROWS: tl.constexpr, MASK: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps of the rows and (unless ALL_ROWS) the columns of one group and temperature, and what their rounding lost."""
    j = tl.arange(0, BLOCK_N)
    count = P if ALL_ROWS else rows
    column_top = tl.full((BLOCK_N,), NEG_INF, ACC)
    column_sum = tl.zeros((BLOCK_N,), ACC)
    for first in range(0, count, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        s = log_kernel(tl.load(distances + i[:, None] * BLOCK_N + j[None, :]), high, low)
        s = tl.where((j < P)[None, :], s, NEG_INF)
        if MASK:
            s = tl.where(i[:, None] == j[None, :], NEG_INF, s)
        top, total = sum_exp(s, 1)
        lse, lost = log_total(top, total)
        tl.store(lse_rows + i, lse, mask=i < count)
        tl.store(row_lows + i, lost)
        if not ALL_ROWS:
            top, total = sum_exp(tl.where((i < rows)[:, None], s, NEG_INF), 0)
            column_top, column_sum = merge(column_top, column_sum, top, total)
    if not ALL_ROWS:
        lse, lost = log_total(column_top, column_sum)
        tl.store(lse_cols + j, lse, mask=j < P)
        tl.store(column_lows + j, lost)


@triton.jit
def group_affinities(
    d, i, lse_rows, lse_cols, row_lows, column_lows, high, low, P, count,
    SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """a of the points i < `count` of one group at one temperature."""
    j = tl.arange(0, BLOCK_N)
    inside = j < P
    R = tl.load(lse_rows + i, mask=i < count, other=0.0)
    C = tl.load(lse_cols + j, mask=inside, other=0.0)
    R_low = tl.load(row_lows + i, mask=i < count, other=0.0)
    C_low = tl.load(column_lows + j, mask=inside, other=0.0)
    itself = i[:, None] == j[None, :]
    return log_affinity(d, high, low, R, R_low, C, C_low, itself, inside, SELF, FLOOR, DENOMINATOR)


@triton.jit
def group_sums(
    distances, weight, lse_rows, lse_cols, row_lows, column_lows, shift, sums, side, scale, high, low, P, rows, negatives,
    RMS: tl.constexpr, SEPARATE: tl.constexpr, SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Shift and sums of one group and temperature, the second side `side` elements behind the first; returns its log_norm in two parts."""
    j = tl.arange(0, BLOCK_N)
    w = tl.zeros((BLOCK_N,), ACC)
    if weight is not None:
        w = tl.load(weight + j, mask=j < P, other=0.0)
    count = P if RMS else rows
    norm_top = tl.full((BLOCK_M,), NEG_INF, ACC)
    norm_sum = tl.zeros((BLOCK_M,), ACC)
    for first in range(0, count, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        d = tl.load(distances + i[:, None] * BLOCK_N + j[None, :])
        a = group_affinities(
            d,
            i,
            lse_rows,
            lse_cols,
            row_lows,
            column_lows,
            high,
            low,
            P,
            count,
            SELF,
            FLOOR,
            DENOMINATOR,
            BLOCK_N,
        )
        if RMS:
            top, square = square_sums(d, a)
            norm_top, norm_sum = merge(
                norm_top, norm_sum, tl.where(i < P, top, NEG_INF), tl.where(i < P, square, 0.0)
            )
        _, top_n, top_p, sum_n, sum_p = side_sums(a, j < negatives, w, weight is not None)
        kept = i < rows
        tl.store(shift + i, top_n, mask=kept)
        tl.store(shift + side + i, top_p, mask=kept)
        tl.store(sums + i, sum_n, mask=kept)
        tl.store(sums + side + i, sum_p, mask=kept)
        if SEPARATE and not RMS:
            apart_n, apart_p = tops_apart(d, a, j < negatives)
            norm_top = tl.maximum(
                norm_top, tl.where(kept, tl.maximum(top_n + apart_p, top_p + apart_n), NEG_INF)
            )
    norm = tl.zeros((), ACC)
    rest = tl.zeros((), ACC)
    if RMS:
        top = tl.max(norm_top, 0)
        total = tl.sum(norm_sum * tl.exp(norm_top - finite(top)), 0)
        norm = tl.where(total == 0.0, NEG_INF, 0.5 * finite(top))
        rest = tl.where(total == 0.0, 0.0, 0.5 * tl.log(total) - tl.log(P.to(ACC)) - tl.log(scale))
    elif SEPARATE:
        norm = finite(tl.max(norm_top, 0))
    return norm, rest


@triton.jit
def group_terms(
    shift, sums, side, norm, rest, terms, rows, ACC: tl.constexpr, BLOCK_N: tl.constexpr
):
    """terms ``[2 (level, coefficient), 2 (side of the column), BLOCK_N]`` of one group and temperature, such that a weight is the
    coefficient times ``exp(a - level)``."""
    i = tl.arange(0, BLOCK_N)
    kept = i < rows
    top_n = tl.load(shift + i, mask=kept, other=0.0)
    top_p = tl.load(shift + side + i, mask=kept, other=0.0)
    unit, excess = unit_and_excess(top_n, top_p, norm, rest, ACC)
    level_n, lost_n = level_of(top_n, excess)
    level_p, lost_p = level_of(top_p, excess)
    tl.store(terms + i, level_n)
    tl.store(terms + BLOCK_N + i, level_p)
    tl.store(
        terms + 2 * BLOCK_N + i, -unit * lost_n * tl.load(sums + side + i, mask=kept, other=0.0)
    )
    tl.store(terms + 3 * BLOCK_N + i, unit * lost_p * tl.load(sums + i, mask=kept, other=0.0))


@triton.jit
def group_weights(d, a, i, weight, terms, P, negatives, BLOCK_N: tl.constexpr):
    """What the coordinates less those of the row are multiplied with in the force on the points i of a group, at one temperature."""
    j = tl.arange(0, BLOCK_N)
    negative = (j < negatives)[None, :]
    e = tl.exp(
        a - tl.where(negative, tl.load(terms + i)[:, None], tl.load(terms + BLOCK_N + i)[:, None])
    )
    terms += 2 * BLOCK_N
    e *= tl.where(negative, tl.load(terms + i)[:, None], tl.load(terms + BLOCK_N + i)[:, None])
    if weight is not None:
        e *= tl.load(weight + j, mask=j < P, other=0.0)[None, :]
    return tl.where((d == 0.0) | (i[:, None] == j[None, :]), 0.0, e)


@triton.jit
def less_row(w, i, BLOCK_N: tl.constexpr):
    """w, 0 on the diagonal, with what makes ``w @ y`` the sum of ``w_ij (y_j - y_i)`` there."""
    return tl.where(i[:, None] == tl.arange(0, BLOCK_N)[None, :], -tl.sum(w, 1)[:, None], w)


@triton.jit(do_not_specialize=["P", "rows", "negatives"])
def force_group(
    x, inverse_temperatures, scale, weight, scratch, force, log_norm, lse_rows, lse_cols, shift, sums,
    P, D, rows, negatives,
    K: tl.constexpr, MEAN: tl.constexpr, ALL_ROWS: tl.constexpr, MASK: tl.constexpr, RMS: tl.constexpr,
    SEPARATE: tl.constexpr, SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr, CLIP: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """The whole of force_ops.force_forward for groups of P <= BLOCK_N points, one program each. MEAN: the scale is computed and written,
    else read. scratch ``[G, features + BLOCK_N + 6 K, BLOCK_N]``: the group's points, transposed, its distances and rows of terms; its own program writes
    them, and reads them from the caches nearest to it.

    BLOCK_M rows are worked on at a time (BLOCK_I for their distances); between the passes over the rows (distances, log-sum-exps, sums,
    forces) the program's threads wait for one another.
    Flops per group: 3 P BLOCK_N D for the distances, 3 or (RMS) 4 exponentials per pair and temperature, 2 rows BLOCK_N D (SEPARATE:
    K times) for the product. Bytes per group: x read once, ``rows D`` written; the scratch from the caches.
    Predicted (no GPU has run it): 60 % of the part's float32 instruction rate in the distances, two instructions per difference; 0.2 ms for
    256 groups of 128 points of 256 features at 5 temperatures on an H200, one program to a multiprocessor at a time.
    """
    G = tl.num_programs(0).to(tl.int64)
    g = tl.program_id(0).to(tl.int64)
    features = tl.cdiv(D, BLOCK_K) * BLOCK_K
    x += g * P * D
    points = scratch + g * (features + BLOCK_N + 6 * K) * BLOCK_N
    distances = points + features * BLOCK_N
    if weight is not None:
        weight += g * P
    transpose_points(x, points, P, D, features, ACC, BLOCK_N, BLOCK_K)
    s = group_distances(points, distances, P, features, CLIP, ACC, BLOCK_I, BLOCK_N, BLOCK_K)
    centre_points(points, P, features, BLOCK_N, BLOCK_K)
    if MEAN:
        size = P.to(ACC)
        s = s / (size * size)
        tl.store(scale + g, s)
    else:
        s = tl.load(scale + g)
    s = safe_scale(s)

    j = tl.arange(0, BLOCK_N)
    count = P if ALL_ROWS else rows
    row_lows = distances + BLOCK_N * BLOCK_N
    column_lows = row_lows + K * BLOCK_N
    terms = column_lows + K * BLOCK_N
    if ALL_ROWS:
        lse_cols = lse_rows
        column_lows = row_lows
    for k in range(K):
        high, low = split_factor(tl.load(inverse_temperatures + k), s, ACC)
        place = k * G + g
        group_lse(
            distances, lse_rows + place * count, lse_cols + place * P, row_lows + k * BLOCK_N, column_lows + k * BLOCK_N,
            high, low, P, rows, ALL_ROWS, MASK, ACC, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    tl.debug_barrier()  # the log-sum-exps are there for every thread
    side = K * G * rows
    for k in range(K):
        high, low = split_factor(tl.load(inverse_temperatures + k), s, ACC)
        place = k * G + g
        norm, rest = group_sums(
            distances, weight, lse_rows + place * count, lse_cols + place * P, row_lows + k * BLOCK_N,
            column_lows + k * BLOCK_N, shift + place * rows, sums + place * rows, side, s, high, low, P, rows, negatives,
            RMS, SEPARATE, SELF, FLOOR, DENOMINATOR, ACC, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        tl.store(log_norm + place, norm + rest)
        tl.debug_barrier()  # so are its shifts and sums
        group_terms(
            shift + place * rows,
            sums + place * rows,
            side,
            norm,
            rest,
            terms + 4 * k * BLOCK_N,
            rows,
            ACC,
            BLOCK_N,
        )
    tl.debug_barrier()  # so are all terms
    weights = distances  # of the rows whose distances have been read
    for first in range(0, rows, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        d = tl.load(distances + i[:, None] * BLOCK_N + j[None, :])
        total = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(K):
            high, low = split_factor(tl.load(inverse_temperatures + k), s, ACC)
            place = k * G + g
            a = group_affinities(
                d, i, lse_rows + place * count, lse_cols + place * P, row_lows + k * BLOCK_N, column_lows + k * BLOCK_N,
                high, low, P, rows, SELF, FLOOR, DENOMINATOR, BLOCK_N,
            )  # fmt: skip
            w = group_weights(d, a, i, weight, terms + 4 * k * BLOCK_N, P, negatives, BLOCK_N)
            if SEPARATE:
                tl.debug_barrier()  # what the weights replace has been read
                tl.store(weights + i[:, None] * BLOCK_N + j[None, :], less_row(w, i, BLOCK_N))
                group_product(
                    weights + first * BLOCK_N, points, force + place * rows * D, first, rows, D, features,
                    ACC, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
                )  # fmt: skip
            else:
                total += w
        if not SEPARATE:
            tl.debug_barrier()  # the distances that the weights replace have been read
            tl.store(weights + i[:, None] * BLOCK_N + j[None, :], less_row(total, i, BLOCK_N))
            group_product(
                weights + first * BLOCK_N, points, force + g * rows * D, first, rows, D, features,
                ACC, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
            )  # fmt: skip


@triton.jit(do_not_specialize=["P"])
def distance_group(
    x, g, scratch, dx, P, D, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """The whole of force_ops.distance_gradient for groups of P <= BLOCK_N points, one program each; dx ``[G, P, D]`` in ACC.

    scratch as in `force_group`, the weights in place of the distances; their row sums go to the diagonal, so that the gradient is one
    product. Flops per group: 3 P BLOCK_N D and 2 P BLOCK_N D. Bytes: those of `force_group`. Predicted (no GPU has run it): the
    time of `force_group` less its exponentials.
    """
    group = tl.program_id(0).to(tl.int64)
    features = tl.cdiv(D, BLOCK_K) * BLOCK_K
    points = scratch + group * (features + BLOCK_N) * BLOCK_N
    weights = points + features * BLOCK_N
    transpose_points(x + group * P * D, points, P, D, features, ACC, BLOCK_N, BLOCK_K)
    j = tile_columns(BLOCK_N)
    upstream = tl.load(g + group)
    for first in range(0, P, BLOCK_I):
        i = first + tl.arange(0, BLOCK_I)
        d = tile_distances(points, first, 0, features, BLOCK_N, 0.0, ACC, BLOCK_I, BLOCK_N, BLOCK_K)
        w = tl.where((j < P)[None, :], slope(d, upstream), 0.0)
        w = tl.where(i[:, None] == j[None, :], tl.sum(w, 1)[:, None], -w)
        tl.store(weights + i[:, None] * BLOCK_N + j[None, :], w)
    tl.debug_barrier()  # the points have been read
    centre_points(points, P, features, BLOCK_N, BLOCK_K)
    for first in range(0, P, BLOCK_M):
        group_product(
            weights + first * BLOCK_N, points, dx + group * P * D, first, P, D, features,
            ACC, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
        )  # fmt: skip
