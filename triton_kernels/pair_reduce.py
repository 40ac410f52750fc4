"""`pair_reduce` finds the maximum and the sum of exponentials of every row and column of logits.

It takes one pass over the tiles, whose functions are in reduce_tiles.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .reduce_tiles import _reduce_both, _reduce_rows
from .tile_math import LOG2E

DIRECT = tl.constexpr(60.0)
"""Logits bounded by this need no shift.

Their exponentials, and sums of 2^30 of them, stay within float32's normal range.
"""


@triton.jit(do_not_specialize=["M", "N", "offset", "stride", "super_rows"])
def pair_reduce(
    a,  # [G, M, D]
    b,  # [G, N, D]
    bias,  # [G, N], or None
    key_a,  # [G, M], or None
    key_b,  # [G, N], or None
    scale,  # []
    bound,  # [G, 3], not read with NORMALIZED and no bias
    slots,  # [plan.slot_count(...)], written
    M,
    N,
    D,
    offset,
    stride,
    super_rows,
    KIND: tl.constexpr,  # of candidates (problem.py)
    SYMMETRIC: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    EXTREMA: tl.constexpr,
    RESIDENT: tl.constexpr,  # whether D <= BLOCK_K
    FOLD: tl.constexpr,  # rows of a thread in one tile
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sum of ``exp2(s2 - maximum)`` and the maximum of the candidate logits, in base 2.

    They are partial results per row and per column, in private slots. There are no atomics, because
    every slot has one writer. One program serves a pair of super-tiles, super_rows rows by
    super_rows columns. With SYMMETRIC there are only pairs at or above the diagonal, and their
    column results belong to the mirrored rows. Logits that scale and row norms bound by DIRECT are
    summed without a shift and stored with maximum 0. The bound is read on the device.

    With S super-tiles, the slots of rows are ``[S_n, G, M]`` sums, then as many maxima. SYMMETRIC
    makes it S_n + 1: the last slot holds the mirrored part of the diagonal super-tile. Without
    SYMMETRIC but with COLUMNS, those of columns follow: ``[S_m, G, N]`` sums, then maxima.

    Flops: 2 M N D, with SYMMETRIC N^2 D, and M N exponentials, with SYMMETRIC half of them.
    Bytes: (M + N) D elements per row of super-tiles from L2, and 16 bytes of slots per row and
    super-tile.
    """
    supers_m = tl.cdiv(M, super_rows)
    supers_n = tl.cdiv(N, super_rows)
    pairs = supers_m * supers_n
    g = tl.program_id(0) // pairs
    G = tl.num_programs(0) // pairs
    super_i = tl.program_id(0) % pairs // supers_n
    super_j = tl.program_id(0) % pairs % supers_n
    group = g.to(tl.int64)
    row_plane = G.to(tl.int64) * M
    row_base = slots + (super_j * row_plane + group * M)
    if SYMMETRIC:
        row_planes = row_plane * (supers_n + 1)
        mirrored = tl.where(super_i == super_j, supers_n, super_i)
        col_base = slots + (mirrored * row_plane + group * M)
        col_planes = row_planes
    else:
        row_planes = row_plane * supers_n
        col_plane = G.to(tl.int64) * N
        col_base = slots + (2 * row_planes + super_i * col_plane + group * N)
        col_planes = col_plane * supers_m

    logit_scale = tl.load(scale)
    scale2 = logit_scale * LOG2E
    if NORMALIZED:
        limit = tl.abs(logit_scale) * 1.01
    else:
        limit = (
            tl.load(bound + g * 3)
            * tl.load(bound + g * 3 + (0 if SYMMETRIC else 1))
            * tl.abs(logit_scale)
        )
    a += group * M * D
    b += group * N * D
    if bias is not None:
        limit += tl.load(bound + g * 3 + 2)
        bias += group * N
    if key_a is not None:
        key_a += group * M
        key_b += group * N
    i_begin = super_i * super_rows
    j_begin = super_j * super_rows
    i_end = tl.minimum(i_begin + super_rows, M)
    j_end = tl.minimum(j_begin + super_rows, N)
    if (not SYMMETRIC) or (super_j >= super_i):
        direct = limit <= DIRECT
        if EXTREMA:
            direct = False
        if COLUMNS:
            if direct:
                _reduce_both(
                    a,
                    b,
                    bias,
                    key_a,
                    key_b,
                    scale2,
                    row_base,
                    row_planes,
                    col_base,
                    col_planes,
                    M,
                    N,
                    D,
                    offset,
                    stride,
                    i_begin,
                    i_end,
                    j_begin,
                    j_end,
                    False,
                    KIND,
                    SYMMETRIC,
                    RESIDENT,
                    FOLD,
                    EVEN_K,
                    PRECISION,
                    ACC,
                    INTERPRET,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                )
            else:
                _reduce_both(
                    a,
                    b,
                    bias,
                    key_a,
                    key_b,
                    scale2,
                    row_base,
                    row_planes,
                    col_base,
                    col_planes,
                    M,
                    N,
                    D,
                    offset,
                    stride,
                    i_begin,
                    i_end,
                    j_begin,
                    j_end,
                    True,
                    KIND,
                    SYMMETRIC,
                    RESIDENT,
                    FOLD,
                    EVEN_K,
                    PRECISION,
                    ACC,
                    INTERPRET,
                    BLOCK_M,
                    BLOCK_N // 2,
                    BLOCK_K,
                )
        elif direct:
            _reduce_rows(
                a,
                b,
                bias,
                key_a,
                key_b,
                scale2,
                row_base,
                row_planes,
                M,
                N,
                D,
                offset,
                stride,
                i_begin,
                i_end,
                j_begin,
                j_end,
                False,
                KIND,
                RESIDENT,
                EVEN_K,
                PRECISION,
                ACC,
                INTERPRET,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
            )
        else:
            _reduce_rows(
                a,
                b,
                bias,
                key_a,
                key_b,
                scale2,
                row_base,
                row_planes,
                M,
                N,
                D,
                offset,
                stride,
                i_begin,
                i_end,
                j_begin,
                j_end,
                True,
                KIND,
                RESIDENT,
                EVEN_K,
                PRECISION,
                ACC,
                INTERPRET,
                BLOCK_M,
                BLOCK_N // 2,
                BLOCK_K,
            )
