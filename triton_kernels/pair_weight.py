"""`pair_weight`: a panel of the gradient weights W, for library products with the embeddings."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LOG2E, mask_tile, products, round_to, row_pointers, tags

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
        d = products(a_rows, b_rows, D, ACC, PRECISION, INTERPRET, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K)
        scale2 = tl.load(scale) * LOG2E
        bias2 = tl.zeros((BLOCK_N,), ACC)
        if bias is not None:
            bias2 = tl.load(bias + group * N + col_index) * LOG2E
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
                row_part = row_weight * tl.exp2(top - row_level)
                col_part = col_weight * tl.exp2(top - col_level)
                w = tl.exp2(tl.fma(d, scale2, (bias2 - top)[None, :])) * (row_part[:, None] + col_part[None, :])
            else:
                w = _two_levels(d, scale2, bias2, row_level, row_weight, col_level, col_weight)
        else:
            w = tl.exp2(tl.fma(d, scale2, bias2[None, :] - row_level[:, None])) * row_weight[:, None]
        if key_a is not None:
            key_a += group * M
            key_b += group * N
        row_tags = tags(key_a, rows, M, offset, stride, KIND)
        col_tags = tags(key_b, columns, N, 0, stride, KIND)
        w = mask_tile(w, 0.0, i, j, row_tags, col_tags, M, N, offset, stride, KIND, False, BLOCK_M, BLOCK_N)
        w = round_to(w, panel.dtype.element_ty, INTERPRET)
        ld = tl.cdiv(N, 16) * 16
        panel += group * M * ld
        _store_tile(panel, ld, w, i, j, M, N, MIRROR, BLOCK_M, BLOCK_N)
        if MIRROR:
            _store_mirrored(panel, ld, w, i, j, N, BLOCK_M, BLOCK_N)


@triton.jit
def _two_levels(d, scale2, bias2, row_level, row_weight, col_level, col_weight):
    """Both terms relative to the lower of the two levels, so that neither exponential overflows or both vanish."""
    w = tl.exp2(tl.fma(d, scale2, bias2[None, :] - row_level[:, None])) * row_weight[:, None]
    return tl.fma(tl.exp2(tl.fma(d, scale2, (bias2 - col_level)[None, :])), col_weight[None, :], w)


@triton.jit
def _store_tile(panel, ld, w, i, j, M, N, UPPER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows i.., columns j..; with UPPER only j >= i. Inner tiles are stored without a mask, in whole vectors."""
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    pointers = panel + i.to(tl.int64) * ld + j + (rows * ld)[:, None] + columns[None, :]
    whole = (i + BLOCK_M <= M) & (j + BLOCK_N <= N)
    if UPPER:
        whole = whole & (j >= i + BLOCK_M)
    if whole:
        tl.store(pointers, w)
    else:
        kept = (rows < M - i)[:, None] & (columns < N - j)[None, :]
        if UPPER:
            kept = kept & ((columns + j)[None, :] >= (rows + i)[:, None])
        tl.store(pointers, w, mask=kept)


@triton.jit
def _store_mirrored(panel, ld, w, i, j, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The transposed tile at rows j.., columns i.., strictly below the diagonal."""
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_M)
    pointers = panel + j.to(tl.int64) * ld + i + (rows * ld)[:, None] + columns[None, :]
    w = tl.trans(w)
    if (j + BLOCK_N <= N) & (j >= i + BLOCK_M):
        tl.store(pointers, w)
    else:
        kept = (rows < N - j)[:, None] & (columns < N - i)[None, :] & ((rows + j)[:, None] > (columns + i)[None, :])
        tl.store(pointers, w, mask=kept)
