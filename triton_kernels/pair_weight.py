"""`pair_weight` writes a panel of the gradient weights W, for products with the embeddings.

The products are the library's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile_math import LOG2E, mask_tile, products, round_to, row_pointers

SPREAD = tl.constexpr(34.0)
"""Levels of a tile within this many octaves share one exponential.

What flushes to zero is then below 2^-92 of its row's weight.
"""

HALF_RANGE = tl.constexpr(8192.0)
"""float16 panels hold ``W * HALF_RANGE / unit``, at most twice HALF_RANGE in magnitude."""


@triton.jit(do_not_specialize=["M", "N", "offset", "stride"])
def pair_weight(
    a,  # [G, M, D]
    b,  # [G, N, D]
    bias,  # [G, N], or None
    key_a,  # [G, M], or None
    key_b,  # [G, N], or None
    scale,  # []
    row_terms,  # [G, M, 2]
    col_terms,  # [G, N, 2], or None
    unit,  # [1], the largest weight; None: not float16
    panel,  # [G, M, ld], written
    M,
    N,
    D,
    offset,
    stride,
    KIND: tl.constexpr,  # of candidates (problem.py)
    MIRROR: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,  # rows of tiles in turn
):
    """``W_ij = weight_i exp2(s2_ij - level_i)``, 0 where j is no candidate of i.

    With COLUMNS, ``weight_j exp2(s2_ij - level_j)`` is added. Where the levels of a tile are
    close (SPREAD), both terms share one exponential. The leading dimension ld of the panel is N
    rounded up to 16 elements. With MIRROR, for one set and its whole matrix, tiles above the
    square blocks on the diagonal are written at both places. Those below are not computed. One
    program serves a tile, GROUP rows of tiles in turn, so that operands stay in L2.

    Flops: 2 M N D, with MIRROR N^2 D, and M N exponentials, with MIRROR half of them.
    Bytes: M N elements written.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tiles_m * tiles_n
    group = (tl.program_id(0) // tiles).to(tl.int64)
    pid = tl.program_id(0) % tiles
    band = pid // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - band, GROUP)
    i = (band + pid % (GROUP * tiles_n) % height) * BLOCK_M
    j = pid % (GROUP * tiles_n) // height * BLOCK_N
    SQUARE: tl.constexpr = BLOCK_M if BLOCK_M > BLOCK_N else BLOCK_N
    if (not MIRROR) or (j // SQUARE >= i // SQUARE):
        rows = i + tl.arange(0, BLOCK_M)
        columns = j + tl.arange(0, BLOCK_N)
        row_index = tl.minimum(rows, M - 1)
        col_index = tl.minimum(columns, N - 1)
        a_rows = row_pointers(a + group * M * D, i, BLOCK_M, M, D)
        b_rows = row_pointers(b + group * N * D, j, BLOCK_N, N, D)
        d = products(
            a_rows, b_rows, D, ACC, PRECISION, INTERPRET, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K
        )
        scale2 = tl.load(scale) * LOG2E
        bias2 = tl.zeros((BLOCK_N,), ACC)
        if bias is not None:
            bias2 = tl.load(bias + group * N + col_index) * LOG2E
        row_pair = _load_terms(row_terms + group * M * 2, row_index)
        row_level, row_weight = tl.split(row_pair)
        # The logits are rounded as in pair_reduce, so that a row's weights sum to its coefficient.
        s = tl.fma(d, scale2, bias2[None, :])
        factor = tl.full((1,), 1.0, ACC)
        if unit is not None:
            largest = tl.load(unit)
            factor = tl.where(largest > 0.0, HALF_RANGE / largest, 0.0)
        row_weight *= factor
        if COLUMNS:
            col_pair = _load_terms(col_terms + group * N * 2, col_index)
            col_level, col_weight = tl.split(col_pair)
            col_weight *= factor
            top = tl.maximum(tl.max(row_level, 0), tl.max(col_level, 0))
            low = tl.minimum(tl.min(row_level, 0), tl.min(col_level, 0))
            if top - low <= SPREAD:
                row_part = _relative(row_pair, top, row_weight)
                col_part = _relative(col_pair, top, col_weight)
                w = tl.exp2(s - top) * (row_part[:, None] + col_part[None, :])
            else:
                w = tl.exp2(s - row_level[:, None]) * row_weight[:, None]
                w = tl.fma(tl.exp2(s - col_level[None, :]), col_weight[None, :], w)
        else:
            w = tl.exp2(s - row_level[:, None]) * row_weight[:, None]
        if key_a is not None:
            key_a += group * M
            key_b += group * N
        w = mask_tile(w, 0.0, i, j, key_a, key_b, M, N, offset, stride, KIND, BLOCK_M, BLOCK_N)
        w = round_to(w, panel.dtype.element_ty, INTERPRET)
        ld = tl.cdiv(N, 16) * 16
        panel += group * M * ld
        _store(panel, ld, w, i, j, M, N, BLOCK_M, BLOCK_N)
        if MIRROR:
            if j // SQUARE > i // SQUARE:
                _store(panel, ld, tl.trans(w), j, i, M, N, BLOCK_N, BLOCK_M)


@triton.jit
def _load_terms(
    terms,  # [count, 2]
    index,  # [BLOCK]
):
    """The level and the weight of each row, ``[BLOCK, 2]``.

    This is one load in a layout of its own. What is computed from it is computed once per row.
    """
    return tl.load(terms + 2 * index[:, None] + tl.arange(0, 2)[None, :])


@triton.jit
def _relative(
    pair,  # [BLOCK, 2]
    top,  # []
    weight,  # [BLOCK]
):
    """``weight exp2(top - level)``, which is ``[BLOCK]``."""
    fade, _ = tl.split(tl.exp2(top - pair))
    return fade * weight


@triton.jit
def _store(
    panel,  # [M, ld], written
    ld,  # elements between two rows
    w,  # [BLOCK_M, BLOCK_N]
    i,
    j,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store w at the rows from i and the columns from j of the panel.

    Inner tiles need no mask and are stored in whole vectors.
    """
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    pointers = panel + i.to(tl.int64) * ld + j + (rows * ld)[:, None] + columns[None, :]
    if (i + BLOCK_M <= M) & (j + BLOCK_N <= N):
        tl.store(pointers, w)
    else:
        tl.store(pointers, w, mask=(rows < M - i)[:, None] & (columns < N - j)[None, :])
