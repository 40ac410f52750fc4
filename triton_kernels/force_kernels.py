"""Kernels for sets of any size, a tile of pairs at a time.

They are `force_lse`, `force_sums` and `force_rows`; force_distances.py has two more. Every program
owns a block of rows and a range of `split_columns` columns, which it walks in order. There are no
atomics. All kernels read the transposed points ``[G, features, LD]``, which are padded with zeros
from D and P to multiples of BLOCK_K and BLOCK_N. Each of them computes the distances again.

The following is predicted for each, and not yet measured on a GPU. The distances reach 50 % of the
part's float32 instruction rate, with two instructions per difference. That is 16 ps per pair at D =
128 on an H200, and 1 ps per temperature. Each tile reads 4 (BLOCK_M + BLOCK_N) D bytes from L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .force_math import (
    log_kernel,
    merge,
    side_sums,
    square_sums,
    sum_exp,
    tile_columns,
    tile_distances,
    tops_apart,
)
from .force_tile_parts import insert, place_of_program, tile_affinities, tile_product
from .tile_math import NEG_INF


@triton.jit(do_not_specialize=["M", "N", "split_columns"])
def force_lse(
    points,  # [G, features, LD], transposed
    factors,  # [2, K, G], in two parts
    out,  # [splits, 2 (maximum, sum), K, G, M], written
    M,
    N,
    features,  # D rounded up to BLOCK_K
    LD,  # P rounded up to BLOCK_N
    split_columns,  # columns of a program
    K: tl.constexpr,  # temperatures
    KP: tl.constexpr,  # K rounded up to a power of two
    MASK: tl.constexpr,  # whether self pairs are left out of the softmaxes
    CLIP: tl.constexpr,  # lower bound of the squared distance
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write what the log-sum-exps of ``-f d_ij`` are made of, for each split of the columns.

    Over rows i < M and columns j < N these are each row's maximum, and the sum of the exponentials
    relative to it. Flops: 3 M N D, and K M N exponentials.
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
    points,  # [G, features, LD], transposed
    factors,  # [2, K, G], in two parts
    lse_rows,  # [2, K, G, M], in two parts
    lse_cols,  # [2, K, G, N], in two parts
    weight,  # [G, N], or None
    out,  # [splits, 2 (shift, sum), 2 (side), K, G, rows_stored], written
    extra,  # [splits, 2, K, G, M], or None; written
    M,
    N,
    rows_stored,  # the rows of the force
    negatives,  # the first columns are negative
    features,  # D rounded up to BLOCK_K
    LD,  # P rounded up to BLOCK_N
    split_columns,  # columns of a program
    K: tl.constexpr,  # temperatures
    KP: tl.constexpr,  # K rounded up to a power of two
    RMS: tl.constexpr,  # whether the norm is the root mean square of d A
    APART: tl.constexpr,  # whether `extra` gets shifts over points that are apart
    SELF: tl.constexpr,  # a of self pairs
    FLOOR: tl.constexpr,  # lower bound of a
    DENOMINATOR: tl.constexpr,  # lower bound of R + C
    CLIP: tl.constexpr,  # lower bound of the squared distance
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write shifts and sums of the affinities of rows i < M over each split of the points j < N.

    Negative and positive columns have their own. With RMS, where M = N, extra gets shift and sum of
    (d A)^2 of the row (`square_sums`). With APART it gets the sides' shifts over the points that do
    not equal the row.

    Flops: 3 M N D, and K M N exponentials (twice that with RMS).
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
    points,  # [G, features, LD], transposed
    y,  # [G, LD, D], centred coordinates, zeros past N
    factors,  # [2, K, G], in two parts
    lse_rows,  # [2, K, G, M], in two parts
    lse_cols,  # [2, K, G, N], in two parts
    terms,  # [2 (level, coefficient), 2 (side of the column), K, G, M]
    weight,  # [G, N], or None
    out,  # [splits, S, G, M, D], written; S is K with SEPARATE, else 1
    tile,  # [programs, BLOCK_M, BLOCK_N], scratch
    M,
    N,
    D,
    negatives,  # the first columns are negative
    split_columns,  # columns of a program
    K: tl.constexpr,  # temperatures
    SEPARATE: tl.constexpr,  # whether temperatures stay apart
    SELF: tl.constexpr,  # a of self pairs
    FLOOR: tl.constexpr,  # lower bound of a
    DENOMINATOR: tl.constexpr,  # lower bound of R + C
    CLIP: tl.constexpr,  # lower bound of the squared distance
    EVEN_K: tl.constexpr,  # whether BLOCK_D divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,  # points of a step of a product
):
    """Write the forces on rows i < M by each split of the points j < N.

    A weight is the coefficient in `terms` times ``exp(a - level)``. The program's rows of out are
    read and written once per tile, so the distances are needed once for any D.

    Flops: 3 M N D, K M N exponentials, and 2 M N D (K times that with SEPARATE). Bytes: beside
    those of the points, 4 BLOCK_N D of y and 8 BLOCK_M D of out per tile, from L2.
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
                    e * w[None, :],
                    tile,
                    y,
                    out + k * plane,
                    i,
                    j,
                    M,
                    N,
                    D,
                    started,
                    ACC,
                    EVEN_K,
                    PRECISION,
                    INTERPRET,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_D,
                    SLICE,
                )
            else:
                total += e
        if not SEPARATE:
            tile_product(
                total * w[None, :],
                tile,
                y,
                out,
                i,
                j,
                M,
                N,
                D,
                started,
                ACC,
                EVEN_K,
                PRECISION,
                INTERPRET,
                BLOCK_M,
                BLOCK_N,
                BLOCK_D,
                SLICE,
            )
