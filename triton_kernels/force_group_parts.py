"""Device functions of the kernels for small groups: the steps of one group's program."""

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
    side_sums,
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
    x,  # [P, D]
    points,  # [features, BLOCK], written; zeros past P and D
    P,
    D,
    features,  # D rounded up to BLOCK_K
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the points of a group, transposed. BLOCK is at least P."""
    places = tl.arange(0, BLOCK)
    for k in range(0, features, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        kept = (places < P)[:, None] & (columns < D)[None, :]
        tile = tl.load(
            x + places.to(tl.int64)[:, None] * D + columns[None, :], mask=kept, other=0.0
        ).to(ACC)
        tl.store(points + columns.to(tl.int64)[:, None] * BLOCK + places[None, :], tl.trans(tile))
    # Every thread must see the whole group.
    tl.debug_barrier()


@triton.jit
def centre_points(
    points,  # [features, BLOCK]
    P,
    features,  # D rounded up to BLOCK_K
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Subtract the first point from each, in place, and then the mean of what is left.

    No force depends on either. There are zeros past P.
    """
    j = tl.arange(0, BLOCK)[None, :]
    for k in range(0, features, BLOCK_K):
        places = points + (k + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None] * BLOCK + j
        y = tl.load(places)
        y = tl.where(j < P, y - tl.sum(tl.where(j == 0, y, 0.0), 1)[:, None], 0.0)
        y = tl.where(j < P, y - (tl.sum(y, 1) / P)[:, None], 0.0)
        # Every thread must have read what is overwritten next.
        tl.debug_barrier()
        tl.store(places, y)


@triton.jit
def group_product(
    w,  # [BLOCK_M, BLOCK_N], in memory
    points,  # [features, BLOCK_N], the centred points, transposed
    out,  # [rows, D], written
    first,  # first row
    rows,
    D,
    features,  # D rounded up to BLOCK_K
    ACC: tl.constexpr,  # the dtype of sums
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,  # points of a step of a product
):
    """Write ``w @ y`` to the rows of out from `first` on, where y are the centred points."""
    # Every thread must see the weights and the points.
    tl.debug_barrier()
    rows_out = first + tl.arange(0, BLOCK_M)
    for k in range(0, D, BLOCK_D):
        columns = k + tl.arange(0, BLOCK_D)
        total = add_products(
            w,
            points,
            0,
            1,
            BLOCK_N,
            columns,
            (columns < features)[None, :],
            tl.zeros((BLOCK_M, BLOCK_D), ACC),
            False,
            PRECISION,
            INTERPRET,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            SLICE,
        )
        kept = (rows_out < rows)[:, None] & (columns < D)[None, :]
        tl.store(out + rows_out.to(tl.int64)[:, None] * D + columns[None, :], total, mask=kept)


@triton.jit
def group_distances(
    points,  # [features, BLOCK_N], transposed
    distances,  # [BLOCK_N, BLOCK_N], written in its first P rows
    P,
    features,  # D rounded up to BLOCK_K
    CLIP: tl.constexpr,  # lower bound of the squared distance
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the distances of a group, and return their sum over its P x P pairs: ``[]``."""
    j = tile_columns(BLOCK_N)
    total = tl.zeros((BLOCK_M,), ACC)
    for first in range(0, P, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        d = tile_distances(
            points, first, 0, features, BLOCK_N, CLIP, ACC, BLOCK_M, BLOCK_N, BLOCK_K
        )
        tl.store(distances + i[:, None] * BLOCK_N + j[None, :], d)
        total += tl.sum(tl.where((i < P)[:, None] & (j < P)[None, :], d, 0.0), 1)
    # Every thread must see the distances.
    tl.debug_barrier()
    return tl.sum(total, 0)


@triton.jit
def group_lse(
    distances,  # [BLOCK_N, BLOCK_N]
    lse_rows,  # [rows], or [P] with ALL_ROWS; written
    lse_cols,  # [P], written
    row_lows,  # [BLOCK_N], written
    column_lows,  # [BLOCK_N], written
    high,  # [], the factor
    low,  # [], what its rounding lost
    P,
    rows,
    ALL_ROWS: tl.constexpr,  # whether every point is a row
    MASK: tl.constexpr,  # whether self pairs are left out of the softmaxes
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the log-sum-exps of the rows and the columns of one group at one temperature.

    With ALL_ROWS the columns have none of their own. What the rounding lost goes to the lows.
    """
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
    d,  # [BLOCK_M, BLOCK_N]
    i,  # [BLOCK_M], indices; those below `count` are rows
    lse_rows,  # [count]
    lse_cols,  # [P]
    row_lows,  # [BLOCK_N]
    column_lows,  # [BLOCK_N]
    high,  # [], the factor
    low,  # [], what its rounding lost
    P,
    count,  # rows of lse_rows
    SELF: tl.constexpr,  # a of self pairs
    FLOOR: tl.constexpr,  # lower bound of a
    DENOMINATOR: tl.constexpr,  # lower bound of R + C
    BLOCK_N: tl.constexpr,
):
    """a of the points `i` of one group at one temperature: ``[BLOCK_M, BLOCK_N]``."""
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
    distances,  # [BLOCK_N, BLOCK_N]
    weight,  # [P], or None
    lse_rows,  # [rows], or [P] with ALL_ROWS
    lse_cols,  # [P]
    row_lows,  # [BLOCK_N]
    column_lows,  # [BLOCK_N]
    shift,  # [rows], written for both sides
    sums,  # [rows], written for both sides
    side,  # elements between the sides
    scale,  # []
    high,  # [], the factor
    low,  # [], what its rounding lost
    P,
    rows,
    negatives,  # the first columns are negative
    RMS: tl.constexpr,  # whether the norm is the root mean square of d A
    SEPARATE: tl.constexpr,  # whether temperatures stay apart
    SELF: tl.constexpr,  # a of self pairs
    FLOOR: tl.constexpr,  # lower bound of a
    DENOMINATOR: tl.constexpr,  # lower bound of R + C
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write shift and sums of one group and temperature.

    Returns its log_norm in two parts, ``[]`` each.

    The second side lies `side` elements behind the first.
    """
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
    shift,  # [rows], of both sides
    sums,  # [rows], of both sides
    side,  # elements between the sides
    norm,  # []
    rest,  # [], what the norm lacks
    terms,  # [2 (level, coefficient), 2 (side of the column), BLOCK_N], written
    rows,
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_N: tl.constexpr,
):
    """Write what the weights of one group and temperature are made of.

    A weight is the coefficient times ``exp(a - level)``.
    """
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
def group_weights(
    d,  # [BLOCK_M, BLOCK_N]
    a,  # [BLOCK_M, BLOCK_N]
    i,  # [BLOCK_M]
    weight,  # [P], or None
    terms,  # [2, 2, BLOCK_N], from `group_terms`
    P,
    negatives,  # the first columns are negative
    BLOCK_N: tl.constexpr,
):
    """The weights in the force on the points `i` of a group, at one temperature.

    They multiply the coordinates less those of the row: ``[BLOCK_M, BLOCK_N]``.
    """
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
def less_row(
    w,  # [BLOCK_M, BLOCK_N]
    i,  # [BLOCK_M]
    BLOCK_N: tl.constexpr,
):
    """w with a diagonal that makes ``w @ y`` the sum of ``w_ij (y_j - y_i)``.

    The diagonal of the argument w is 0.
    """
    return tl.where(i[:, None] == tl.arange(0, BLOCK_N)[None, :], -tl.sum(w, 1)[:, None], w)
