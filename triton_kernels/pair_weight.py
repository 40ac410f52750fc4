"""`pair_weight`: a panel of the gradient weights W, for library products with the embeddings."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LOG2E, candidates, products, row_pointers, tile_is_masked

SPREAD = tl.constexpr(34.0)
"""Levels of a tile within this many octaves share one exponential: what flushes to zero is below 2^-92 of its row's weight."""

HALF_RANGE = tl.constexpr(8192.0)
"""float16 panels hold ``W * HALF_RANGE / unit``: at most twice HALF_RANGE in magnitude."""


@triton.jit
def pair_weight(
    a, b, bias, key_a, key_b, scale, row_terms, col_terms, unit, panel, M, N, D, offset, stride,
    KIND: tl.constexpr, MIRROR: tl.constexpr, COLUMNS: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """``W_ij = weight_i exp2(s2_ij - level_i) [+ weight_j exp2(s2_ij - level_j) with COLUMNS]``, 0 where j is no candidate of i.

    Writes ``panel [G, M, ld]`` with ld = N rounded up to 16 elements. MIRROR (one set, the whole matrix): tiles at or above the
    diagonal are computed and written at both places. One program per tile, GROUP rows of tiles in turn so that operands stay
    in L2. Where the levels of a tile are close (SPREAD) both terms share one exponential.

    Flops: 2 M N D (MIRROR: N^2 D), M N (half) exponentials. Bytes: M N elements written.
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
    if (not MIRROR) or (j + BLOCK_N > i):
        rows = i + tl.arange(0, BLOCK_M)
        columns = j + tl.arange(0, BLOCK_N)
        row_index = tl.minimum(rows, M - 1)
        col_index = tl.minimum(columns, N - 1)
        a_rows = row_pointers(a + group * M * D, i, BLOCK_M, M, D)
        b_rows = row_pointers(b + group * N * D, j, BLOCK_N, N, D)
        s = products(a_rows, b_rows, D, ACC, PRECISION, INTERPRET, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K)
        scale2 = tl.load(scale) * LOG2E
        if bias is not None:
            shift = tl.load(bias + group * N + col_index) * LOG2E
            s = tl.fma(s, tl.full(s.shape, 0.0, ACC) + scale2, tl.broadcast_to(shift[None, :], s.shape))
        else:
            s = s * scale2
        row_level = tl.load(row_terms + group * M * 2 + 2 * row_index)
        row_weight = tl.load(row_terms + group * M * 2 + 2 * row_index + 1)
        if unit is not None:
            largest = tl.load(unit)
            factor = tl.where(largest > 0.0, HALF_RANGE / largest, 0.0)
            row_weight = row_weight * factor
        if COLUMNS:
            col_level = tl.load(col_terms + group * N * 2 + 2 * col_index)
            col_weight = tl.load(col_terms + group * N * 2 + 2 * col_index + 1)
            if unit is not None:
                col_weight = col_weight * factor
            top = tl.maximum(tl.max(row_level, 0), tl.max(col_level, 0))
            low = tl.minimum(tl.min(row_level, 0), tl.min(col_level, 0))
            if top - low <= SPREAD:
                row_factor = row_weight * tl.exp2(top - row_level)
                col_factor = col_weight * tl.exp2(top - col_level)
                w = tl.exp2(s - top) * (row_factor[:, None] + col_factor[None, :])
            else:
                w = row_weight[:, None] * tl.exp2(s - row_level[:, None])
                w = tl.fma(
                    tl.broadcast_to(col_weight[None, :], s.shape), tl.exp2(s - col_level[None, :]), w
                )
        else:
            w = row_weight[:, None] * tl.exp2(s - row_level[:, None])
        if KIND != "all":
            key_rows = rows
            key_columns = columns
            if key_a is not None:
                key_rows = tl.load(key_a + group * M + row_index)
                key_columns = tl.load(key_b + group * N + col_index)
            if tile_is_masked(i, j, M, N, offset, stride, KIND, BLOCK_M, BLOCK_N):
                keep = candidates(rows, columns, key_rows, key_columns, M, N, offset, stride, KIND)
                w = tl.where(keep, w, 0.0)
        w = w.to(panel.dtype.element_ty)
        ld = tl.cdiv(N, 16) * 16
        panel += group * M * ld
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        if MIRROR:
            inside = inside & (columns[None, :] >= rows[:, None])
        tl.store(panel + rows.to(tl.int64)[:, None] * ld + columns[None, :], w, mask=inside)
        if MIRROR:
            below = inside & (columns[None, :] > rows[:, None])
            mirrored = panel + columns.to(tl.int64)[:, None] * ld + rows[None, :]
            tl.store(mirrored, tl.trans(w), mask=tl.trans(below))
