"""The kernels `force_group` and `distance_group`: one program serves a whole small group."""

from __future__ import annotations

import triton
import triton.language as tl

from .force_group_parts import (
    centre_points,
    group_affinities,
    group_distances,
    group_lse,
    group_product,
    group_sums,
    group_terms,
    group_weights,
    less_row,
    transpose_points,
)
from .force_math import safe_scale, slope, split_factor, tile_columns, tile_distances


@triton.jit(do_not_specialize=["P", "rows", "negatives"])
def force_group(
    x,  # [G, P, D]
    inverse_temperatures,  # [K]
    scale,  # [G]; written with MEAN
    weight,  # [G, P], or None
    scratch,  # [G, features + BLOCK_N + 6 K, BLOCK_N]
    force,  # [S, G, rows, D], written; S is K with SEPARATE, else 1
    log_norm,  # [K, G], written
    lse_rows,  # [K, G, rows], or [K, G, P] with ALL_ROWS; written
    lse_cols,  # [K, G, P], written unless ALL_ROWS
    shift,  # [2, K, G, rows], written
    sums,  # [2, K, G, rows], written
    P,
    D,
    rows,
    negatives,  # the first columns are negative
    K: tl.constexpr,  # temperatures
    MEAN: tl.constexpr,  # whether the scale is computed as the mean distance
    ALL_ROWS: tl.constexpr,  # whether every point is a row
    MASK: tl.constexpr,  # whether self pairs are left out of the softmaxes
    RMS: tl.constexpr,  # whether the norm is the root mean square of d A
    SEPARATE: tl.constexpr,  # whether temperatures stay apart
    SELF: tl.constexpr,  # a of self pairs
    FLOOR: tl.constexpr,  # lower bound of a
    DENOMINATOR: tl.constexpr,  # lower bound of R + C
    CLIP: tl.constexpr,  # lower bound of the squared distance
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_I: tl.constexpr,  # rows of distances at a time
    BLOCK_M: tl.constexpr,  # rows at a time
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,  # points of a step of a product
):
    """The whole of the op force_forward for groups of P <= BLOCK_N points, one program each.

    The scratch holds the group's transposed points, its distances and rows of terms. The group's
    own program writes it, and reads it from the caches nearest to it.

    BLOCK_M rows are worked on at a time, or BLOCK_I for their distances. The passes over the rows
    are distances, log-sum-exps, sums and forces. Between them the program's threads wait for one
    another.

    Flops per group: 3 P BLOCK_N D for the distances; 3 exponentials (4 with RMS) per pair and
    temperature; 2 rows BLOCK_N D for the product (K times that with SEPARATE). Bytes per group: x
    is read once and ``rows D`` written; the scratch comes from the caches.

    The following is predicted and not yet measured on a GPU. The distances reach 60 % of the part's
    float32 instruction rate, with two instructions per difference. On an H200, 256 groups of 128
    points of 256 features take 0.2 ms at 5 temperatures. One program is on a multiprocessor at a
    time.
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
            distances,
            lse_rows + place * count,
            lse_cols + place * P,
            row_lows + k * BLOCK_N,
            column_lows + k * BLOCK_N,
            high,
            low,
            P,
            rows,
            ALL_ROWS,
            MASK,
            ACC,
            BLOCK_M,
            BLOCK_N,
        )
    # Every thread must see the log-sum-exps.
    tl.debug_barrier()
    side = K * G * rows
    for k in range(K):
        high, low = split_factor(tl.load(inverse_temperatures + k), s, ACC)
        place = k * G + g
        norm, rest = group_sums(
            distances,
            weight,
            lse_rows + place * count,
            lse_cols + place * P,
            row_lows + k * BLOCK_N,
            column_lows + k * BLOCK_N,
            shift + place * rows,
            sums + place * rows,
            side,
            s,
            high,
            low,
            P,
            rows,
            negatives,
            RMS,
            SEPARATE,
            SELF,
            FLOOR,
            DENOMINATOR,
            ACC,
            BLOCK_M,
            BLOCK_N,
        )
        tl.store(log_norm + place, norm + rest)
        # Every thread must see the shifts and sums of this temperature.
        tl.debug_barrier()
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
    # Every thread must see all terms.
    tl.debug_barrier()
    # The weights of rows replace their distances once these have been read.
    weights = distances
    for first in range(0, rows, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        d = tl.load(distances + i[:, None] * BLOCK_N + j[None, :])
        total = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(K):
            high, low = split_factor(tl.load(inverse_temperatures + k), s, ACC)
            place = k * G + g
            a = group_affinities(
                d,
                i,
                lse_rows + place * count,
                lse_cols + place * P,
                row_lows + k * BLOCK_N,
                column_lows + k * BLOCK_N,
                high,
                low,
                P,
                rows,
                SELF,
                FLOOR,
                DENOMINATOR,
                BLOCK_N,
            )
            w = group_weights(d, a, i, weight, terms + 4 * k * BLOCK_N, P, negatives, BLOCK_N)
            if SEPARATE:
                # Every thread must have read what the weights replace.
                tl.debug_barrier()
                tl.store(weights + i[:, None] * BLOCK_N + j[None, :], less_row(w, i, BLOCK_N))
                group_product(
                    weights + first * BLOCK_N,
                    points,
                    force + place * rows * D,
                    first,
                    rows,
                    D,
                    features,
                    ACC,
                    PRECISION,
                    INTERPRET,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_D,
                    SLICE,
                )
            else:
                total += w
        if not SEPARATE:
            # Every thread must have read the distances that the weights replace.
            tl.debug_barrier()
            tl.store(weights + i[:, None] * BLOCK_N + j[None, :], less_row(total, i, BLOCK_N))
            group_product(
                weights + first * BLOCK_N,
                points,
                force + g * rows * D,
                first,
                rows,
                D,
                features,
                ACC,
                PRECISION,
                INTERPRET,
                BLOCK_M,
                BLOCK_N,
                BLOCK_D,
                SLICE,
            )


@triton.jit(do_not_specialize=["P"])
def distance_group(
    x,  # [G, P, D]
    g,  # [G]
    scratch,  # [G, features + BLOCK_N, BLOCK_N]
    dx,  # [G, P, D], written in ACC
    P,
    D,
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_I: tl.constexpr,  # rows of distances at a time
    BLOCK_M: tl.constexpr,  # rows at a time
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,  # points of a step of a product
):
    """The whole of the op distance_gradient for groups of P <= BLOCK_N points, one program each.

    The scratch is that of `force_group`, with the weights in place of the distances. The sums of
    the weights' rows go to the diagonal, so that the gradient is one product.

    Flops per group: 3 P BLOCK_N D and 2 P BLOCK_N D. Bytes: those of `force_group`. It is
    predicted, and not yet measured on a GPU, to take the time of `force_group` less its
    exponentials.
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
    # Every thread must have read the points before they are centred.
    tl.debug_barrier()
    centre_points(points, P, features, BLOCK_N, BLOCK_K)
    for first in range(0, P, BLOCK_M):
        group_product(
            weights + first * BLOCK_N,
            points,
            dx + group * P * D,
            first,
            P,
            D,
            features,
            ACC,
            PRECISION,
            INTERPRET,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            SLICE,
        )
