"""Kernels for sums of distances and their gradient, a tile of pairs at a time.

Tiles, padding and predictions are those of force_kernels.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .force_math import slope, tile_columns, tile_distances
from .force_tile_parts import place_of_program, tile_product


@triton.jit(do_not_specialize=["M", "N", "split_columns"])
def distance_rows(
    points,  # [G, features, LD], transposed
    weight,  # [G, N], or None
    out,  # [splits, G, M], written
    M,
    N,
    features,  # D rounded up to BLOCK_K
    LD,  # P rounded up to BLOCK_N
    split_columns,  # columns of a program
    CLIP: tl.constexpr,  # lower bound of the squared distance
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write ``sum_j d_ij weight_j`` of rows i < M over each split of the columns j < N.

    Flops: 3 M N D.
    """
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


@triton.jit(do_not_specialize=["P", "split_columns"])
def distance_pull(
    points,  # [G, features, LD], transposed
    y,  # [G, LD, D], centred coordinates, zeros past P
    g,  # [G]
    out,  # [splits, G, P, D], written
    tile,  # [programs, BLOCK_M, BLOCK_N], scratch
    P,
    D,
    split_columns,  # columns of a program
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
    """Write ``sum_j W_ij (y_j - y_i)`` over each split of the columns.

    ``W_ij = 2 g / d_ij``, 0 where d is 0. Flops: 3 P^2 D and 2 P^2 D. Bytes: those of `force_rows`.
    """
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
            w,
            tile,
            y,
            out,
            i,
            j,
            P,
            P,
            D,
            tl.where(j > j_begin, P, 0),
            ACC,
            EVEN_K,
            PRECISION,
            INTERPRET,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            SLICE,
        )
