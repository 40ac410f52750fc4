"""Kernels for sets of any size, a tile of pairs at a time: `distance_rows`, `force_lse`, `force_sums`, `force_rows`, `distance_pull`.

Every program owns a block of rows and a range of `split_columns` columns, walked in order; no atomics. All read the transposed points
``[G, features, LD]`` (D and P, padded with zeros to multiples of BLOCK_K and BLOCK_N) and compute the distances again. Predicted for
each (no GPU has run them): 50 % of the part's float32 instruction rate in the distances, two instructions per difference: 16 ps per
pair at D = 128 on an H200, and 1 ps per temperature. Bytes: 4 (BLOCK_M + BLOCK_N) D per tile, from L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .force_math import (
    add_products,
    log_affinity,
    log_kernel,
    merge,
    side_sums,
    slope,
    square_sums,
    sum_exp,
    tile_columns,
    tile_distances,
    tops_apart,
)
from .tile_math import NEG_INF


@triton.jit
def place_of_program(M, N, split_columns, BLOCK_M: tl.constexpr):
    """(g, G, split, i, j_begin, j_end) of this program: groups, then blocks of BLOCK_M rows, then splits of the columns."""
    splits = tl.cdiv(N, split_columns)
    programs = tl.cdiv(M, BLOCK_M) * splits
    pid = tl.program_id(0)
    split = pid % programs % splits
    i = pid % programs // splits * BLOCK_M
    j_begin = split * split_columns
    j_end = tl.minimum(j_begin + split_columns, N)
    return (
        (pid // programs).to(tl.int64),
        (tl.num_programs(0) // programs).to(tl.int64),
        split,
        i,
        j_begin,
        j_end,
    )


@triton.jit
def tile_affinities(
    d, rows, columns, factors, lse_rows, lse_cols, k, K, g, G, M, N,
    SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr,
):  # fmt: skip
    """a of a tile at temperature k."""
    place = k * G + g
    inside = columns < N
    R = tl.load(lse_rows + place * M + rows, mask=rows < M, other=0.0)
    R_low = tl.load(lse_rows + (K * G + place) * M + rows, mask=rows < M, other=0.0)
    C = tl.load(lse_cols + place * N + columns, mask=inside, other=0.0)
    C_low = tl.load(lse_cols + (K * G + place) * N + columns, mask=inside, other=0.0)
    high = tl.load(factors + place)
    low = tl.load(factors + K * G + place)
    itself = rows[:, None] == columns[None, :]
    return log_affinity(d, high, low, R, R_low, C, C_low, itself, inside, SELF, FLOOR, DENOMINATOR)


@triton.jit
def insert(state, k, values):
    """Column k of state ``[BLOCK_M, KP]`` replaced by values ``[BLOCK_M]``."""
    return tl.where(tl.arange(0, state.shape[1])[None, :] == k, values[:, None], state)


@triton.jit
def tile_product(
    w, tile, y, out, i, j, M, N, D, started, ACC: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Adds ``sum_j w_ij (y_j - y_i)`` to rows i.. of out ``[M, D]``, or sets them from row `started` on.
    y ``[N, D]``, zeros up to a tile's end.

    Only this program touches those rows of out and its part of `tile`, which holds w."""
    place = tl.program_id(0).to(tl.int64) * BLOCK_M * BLOCK_N
    here = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.debug_barrier()  # the tile before has been read
    tl.store(tile + place + here, w)
    tl.debug_barrier()  # the tile is there for every thread, and so are the sums of the one before
    rows = i + tl.arange(0, BLOCK_M)
    total_w = tl.sum(w, 1)
    for k in range(0, D, BLOCK_D):
        features = k + tl.arange(0, BLOCK_D)
        inside = (features < (k + BLOCK_D if EVEN_K else D))[None, :]
        total = add_products(
            tile + place, y, j, D, 1, features, inside, tl.zeros((BLOCK_M, BLOCK_D), ACC), True, PRECISION, INTERPRET,
            BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
        )  # fmt: skip
        own = rows.to(tl.int64)[:, None] * D + features[None, :]
        total -= total_w[:, None] * tl.load(y + own, mask=inside, other=0.0)
        target = out + own
        total += tl.load(target, mask=(rows < started)[:, None] & inside, other=0.0)
        tl.store(target, total, mask=(rows < M)[:, None] & inside)


@triton.jit(do_not_specialize=["M", "N", "split_columns"])
def distance_rows(
    points, weight, out, M, N, features, LD, split_columns,
    CLIP: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``sum_j d_ij weight_j`` of rows i < M over each split of the columns j < N: out ``[splits, G, M]``. Flops: 3 M N D."""
    g, G, split, i, j_begin, j_end = place_of_program(M, N, split_columns, BLOCK_M)
    points += g * features * LD
    total = tl.zeros((BLOCK_M,), ACC)
    for j in range(j_begin, j_end, BLOCK_N):
        d = tile_distances(points, i, j, features, LD, CLIP, ACC, BLOCK_M, BLOCK_N, BLOCK_K)
        columns = j + tile_columns(BLOCK_N)
        if weight is not None:
            d = d * tl.load(weight + g * N + columns, mask=columns < N, other=0.0)[None, :]
        total += tl.sum(tl.where((columns < N)[None, :], d, 0.0), 1)
    rows = i + tl.arange(0, BLOCK_M)
    tl.store(out + (split * G + g) * M + rows, total, mask=rows < M)


@triton.jit(do_not_specialize=["M", "N", "split_columns"])
def force_lse(
    points, factors, out, M, N, features, LD, split_columns,
    K: tl.constexpr, KP: tl.constexpr, MASK: tl.constexpr, CLIP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(maximum, sum of exp(. - maximum)) of ``-f d_ij`` of the points i < M over each split of the points j < N: out
    ``[splits, 2, K, G, M]``; factors ``[2, K, G]``, in two parts.

    Flops: 3 M N D, K M N exponentials.
    """
    g, G, split, i, j_begin, j_end = place_of_program(M, N, split_columns, BLOCK_M)
    points += g * features * LD
    rows = i + tl.arange(0, BLOCK_M)
    top = tl.full((BLOCK_M, KP), NEG_INF, ACC)
    total = tl.zeros((BLOCK_M, KP), ACC)
    for j in range(j_begin, j_end, BLOCK_N):
        d = tile_distances(points, i, j, features, LD, CLIP, ACC, BLOCK_M, BLOCK_N, BLOCK_K)
        columns = j + tile_columns(BLOCK_N)
        left_out = (columns >= N)[None, :]
        if MASK:
            left_out = left_out | (rows[:, None] == columns[None, :])
        tile_top = tl.full((BLOCK_M, KP), NEG_INF, ACC)
        tile_total = tl.zeros((BLOCK_M, KP), ACC)
        for k in range(K):
            high = tl.load(factors + k * G + g)
            low = tl.load(factors + (K + k) * G + g)
            largest, part = sum_exp(tl.where(left_out, NEG_INF, log_kernel(d, high, low)), 1)
            tile_top, tile_total = insert(tile_top, k, largest), insert(tile_total, k, part)
        top, total = merge(top, total, tile_top, tile_total)
    temperatures = tl.arange(0, KP)[None, :]
    places = ((split * 2 * K + temperatures) * G + g) * M + rows[:, None]
    kept = (rows < M)[:, None] & (temperatures < K)
    tl.store(out + places, top, mask=kept)
    tl.store(out + K * G * M + places, total, mask=kept)


@triton.jit(do_not_specialize=["M", "N", "rows_stored", "negatives", "split_columns"])
def force_sums(
    points, factors, lse_rows, lse_cols, weight, out, extra, M, N, rows_stored, negatives, features, LD, split_columns,
    K: tl.constexpr, KP: tl.constexpr, RMS: tl.constexpr, APART: tl.constexpr, SELF: tl.constexpr, FLOOR: tl.constexpr,
    DENOMINATOR: tl.constexpr, CLIP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shifts and sums of the affinities of rows i < M over each split of the points j < N, of the negative and the positive columns apart:
    out ``[splits, 2 (shift, sum), 2 (side), K, G, rows_stored]``. RMS: also extra ``[splits, 2, K, G, M]``, shift and
    sum of (d A)^2 of the row (`square_sums`); then M = N. APART: also extra, of the same shape, the sides' shifts over the points that do
    not equal the row. factors ``[2, K, G]``, lse_rows ``[2, K, G, M]``, lse_cols ``[2, K, G, N]``.

    Flops: 3 M N D, K M N (RMS: twice) exponentials.
    """
    g, G, split, i, j_begin, j_end = place_of_program(M, N, split_columns, BLOCK_M)
    points += g * features * LD
    rows = i + tl.arange(0, BLOCK_M)
    none = tl.full((BLOCK_M, KP), NEG_INF, ACC)
    zero = tl.zeros((BLOCK_M, KP), ACC)
    top_n, sum_n, top_p, sum_p, top_s, sum_s = none, zero, none, zero, none, zero
    if APART:
        sum_s = none
    for j in range(j_begin, j_end, BLOCK_N):
        d = tile_distances(points, i, j, features, LD, CLIP, ACC, BLOCK_M, BLOCK_N, BLOCK_K)
        columns = j + tile_columns(BLOCK_N)
        inside = columns < N
        w = tl.zeros((BLOCK_N,), ACC)
        if weight is not None:
            w = tl.load(weight + g * N + columns, mask=inside, other=0.0)
        t_n, u_n, t_p, u_p, t_s, u_s = none, zero, none, zero, none, zero
        for k in range(K):
            a = tile_affinities(
                d,
                rows,
                columns,
                factors,
                lse_rows,
                lse_cols,
                k,
                K,
                g,
                G,
                M,
                N,
                SELF,
                FLOOR,
                DENOMINATOR,
            )
            if RMS:
                shift, square = square_sums(d, a)
                t_s, u_s = insert(t_s, k, shift), insert(u_s, k, square)
            if APART:
                apart_negative, apart_positive = tops_apart(d, a, columns < negatives)
                t_s, u_s = insert(t_s, k, apart_negative), insert(u_s, k, apart_positive)
            _, top_negative, top_positive, sum_negative, sum_positive = side_sums(
                a, columns < negatives, w, weight is not None
            )
            t_n, u_n = insert(t_n, k, top_negative), insert(u_n, k, sum_negative)
            t_p, u_p = insert(t_p, k, top_positive), insert(u_p, k, sum_positive)
        top_n, sum_n = merge(top_n, sum_n, t_n, u_n)
        top_p, sum_p = merge(top_p, sum_p, t_p, u_p)
        if RMS:
            top_s, sum_s = merge(top_s, sum_s, t_s, u_s)
        if APART:
            top_s, sum_s = tl.maximum(top_s, t_s), tl.maximum(sum_s, u_s)
    temperatures = tl.arange(0, KP)[None, :]
    plane = K * G * rows_stored
    places = split * 4 * plane + (temperatures * G + g) * rows_stored + rows[:, None]
    kept = (rows < rows_stored)[:, None] & (temperatures < K)
    tl.store(out + places, top_n, mask=kept)
    tl.store(out + plane + places, top_p, mask=kept)
    tl.store(out + 2 * plane + places, sum_n, mask=kept)
    tl.store(out + 3 * plane + places, sum_p, mask=kept)
    if RMS or APART:
        places = ((split * 2 * K + temperatures) * G + g) * M + rows[:, None]
        kept = (rows < M)[:, None] & (temperatures < K)
        tl.store(extra + places, top_s, mask=kept)
        tl.store(extra + K * G * M + places, sum_s, mask=kept)


@triton.jit(do_not_specialize=["M", "N", "negatives", "split_columns"])
def force_rows(
    points, y, factors, lse_rows, lse_cols, terms, weight, out, tile, M, N, D, negatives, split_columns,
    K: tl.constexpr, SEPARATE: tl.constexpr, SELF: tl.constexpr, FLOOR: tl.constexpr, DENOMINATOR: tl.constexpr,
    CLIP: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """Forces on rows i < M by each split of the points j < N: out ``[splits, S, G, M, D]``, S = 1 for the sum over the temperatures, or
    (SEPARATE) K.

    y ``[G, LD, D]`` centred coordinates, zeros past N; tile: scratch ``[programs, BLOCK_M, BLOCK_N]``; factors ``[2, K, G]``, lse_rows
    ``[2, K, G, M]`` and lse_cols ``[2, K, G, N]`` in two parts; terms ``[2 (level, coefficient), 2 (side of the column), K, G, M]``, such
    that a weight is the coefficient times ``exp(a - level)``.
    The program's rows of out are read and written once per tile, so that any D needs the distances once.

    Flops: 3 M N D, K M N exponentials, 2 M N D (SEPARATE: K times). Bytes: beside the points' 4 BLOCK_N D of y and 8 BLOCK_M D of out
    per tile, from L2.
    """
    g, G, split, i, j_begin, j_end = place_of_program(M, N, split_columns, BLOCK_M)
    features = tl.cdiv(D, BLOCK_K) * BLOCK_K
    LD = tl.cdiv(N, BLOCK_N) * BLOCK_N
    points += g * features * LD
    y += g * LD * D
    plane = G * M * D
    out += split * (K if SEPARATE else 1) * plane + g * M * D
    rows = i + tl.arange(0, BLOCK_M)
    for j in range(j_begin, j_end, BLOCK_N):
        d = tile_distances(points, i, j, features, LD, CLIP, ACC, BLOCK_M, BLOCK_N, BLOCK_K)
        columns = j + tile_columns(BLOCK_N)
        inside = columns < N
        itself = rows[:, None] == columns[None, :]
        negative = (columns < negatives)[None, :]
        w = tl.where(inside, 1.0, 0.0).to(ACC)
        if weight is not None:
            w = tl.load(weight + g * N + columns, mask=inside, other=0.0)
        started = tl.where(j > j_begin, M, 0)
        total = tl.zeros((BLOCK_M, BLOCK_N), ACC)
        for k in range(K):
            place = (k * G + g) * M
            a = tile_affinities(
                d,
                rows,
                columns,
                factors,
                lse_rows,
                lse_cols,
                k,
                K,
                g,
                G,
                M,
                N,
                SELF,
                FLOOR,
                DENOMINATOR,
            )
            level_n = tl.load(terms + place + rows, mask=rows < M, other=0.0)
            level_p = tl.load(terms + K * G * M + place + rows, mask=rows < M, other=0.0)
            pull_n = tl.load(terms + 2 * K * G * M + place + rows, mask=rows < M, other=0.0)
            pull_p = tl.load(terms + 3 * K * G * M + place + rows, mask=rows < M, other=0.0)
            e = tl.exp(a - tl.where(negative, level_n[:, None], level_p[:, None]))
            e *= tl.where(negative, pull_n[:, None], pull_p[:, None])
            e = tl.where((d == 0.0) | itself, 0.0, e)
            if SEPARATE:
                tile_product(
                    e * w[None, :], tile, y, out + k * plane, i, j, M, N, D, started,
                    ACC, EVEN_K, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
                )  # fmt: skip
            else:
                total += e
        if not SEPARATE:
            tile_product(
                total * w[None, :], tile, y, out, i, j, M, N, D, started,
                ACC, EVEN_K, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
            )  # fmt: skip


@triton.jit(do_not_specialize=["P", "split_columns"])
def distance_pull(
    points, y, g, out, tile, P, D, split_columns,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """``sum_j W_ij (y_j - y_i)`` over each split of the columns, ``W_ij = 2 g / d_ij``, 0 where d is 0: out
    ``[splits, G, P, D]``; y and tile as in `force_rows`, g ``[G]``. Flops: 3 P^2 D and 2 P^2 D. Bytes: those of `force_rows`."""
    group, G, split, i, j_begin, j_end = place_of_program(P, P, split_columns, BLOCK_M)
    features = tl.cdiv(D, BLOCK_K) * BLOCK_K
    LD = tl.cdiv(P, BLOCK_N) * BLOCK_N
    points += group * features * LD
    y += group * LD * D
    out += (split * G + group) * P * D
    upstream = tl.load(g + group)
    for j in range(j_begin, j_end, BLOCK_N):
        d = tile_distances(points, i, j, features, LD, 0.0, ACC, BLOCK_M, BLOCK_N, BLOCK_K)
        columns = j + tile_columns(BLOCK_N)
        w = tl.where((columns < P)[None, :], slope(d, upstream), 0.0)
        tile_product(
            w, tile, y, out, i, j, P, P, D, tl.where(j > j_begin, P, 0),
            ACC, EVEN_K, PRECISION, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_D, SLICE,
        )  # fmt: skip
