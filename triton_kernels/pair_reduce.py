"""`pair_reduce`: row and column (maximum, sum of exponentials) of the logits, in one pass over the tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import (
    LOG2E,
    NEG_INF,
    finite,
    load_rows,
    mask_tile,
    multiply,
    products,
    row_pointers,
    tags,
)

DIRECT = tl.constexpr(60.0)
"""Logits bounded by this need no shift: exp stays within float32's normal range, sums of 2^30 of them too."""


@triton.jit
def _reduce_super(
    a, b, bias, key_a, key_b, scale2, row_sums, col_sums, row_plane, col_plane, M, N, D, offset, stride,
    i_begin, i_end, j_begin, j_end,
    CAREFUL: tl.constexpr, KIND: tl.constexpr, SYMMETRIC: tl.constexpr, SELF: tl.constexpr, COLUMNS: tl.constexpr,
    RESIDENT: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program's tiles. Row statistics stay in registers along a row of tiles; column statistics are updated in this program's own
    slot. With CAREFUL sums are relative to running maxima, which are stored `row_plane` (`col_plane`) elements behind them."""
    for i in range(i_begin, i_end, BLOCK_M):
        rows = i + tl.arange(0, BLOCK_M)
        a_rows = row_pointers(a, i, BLOCK_M, M, D)
        if RESIDENT:
            x = load_rows(a_rows, 0, D, BLOCK_K, EVEN_K)
        row_tags = tags(key_a, rows, M, offset, stride, KIND)
        row_max = tl.full((BLOCK_M,), NEG_INF, ACC)
        row_sum = tl.zeros((BLOCK_M,), ACC)
        j_first = j_begin
        if SYMMETRIC:
            j_first = tl.maximum(j_begin, i // BLOCK_N * BLOCK_N)
        for j in range(j_first, j_end, BLOCK_N):
            columns = j + tl.arange(0, BLOCK_N)
            started = columns < tl.where(i > i_begin, N, 0)
            if COLUMNS:
                col_sum = tl.load(col_sums + columns, mask=started, other=0.0)
                if CAREFUL:
                    col_max = tl.load(col_sums + col_plane + columns, mask=started, other=NEG_INF)
            b_rows = row_pointers(b, j, BLOCK_N, N, D)
            if RESIDENT:
                y = load_rows(b_rows, 0, D, BLOCK_K, EVEN_K)
                s = multiply(x, tl.trans(y), tl.zeros((BLOCK_M, BLOCK_N), ACC), PRECISION, INTERPRET)
            else:
                s = products(a_rows, b_rows, D, ACC, PRECISION, INTERPRET, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K)
            if bias is not None:
                shift = tl.load(bias + columns, mask=columns < N, other=0.0) * LOG2E
                s = tl.fma(s, scale2, shift[None, :])
            else:
                s = s * scale2
            col_tags = tags(key_b, columns, N, 0, stride, KIND)
            s = mask_tile(s, NEG_INF, i, j, row_tags, col_tags, M, N, offset, stride, KIND, SYMMETRIC, BLOCK_M, BLOCK_N)
            diagonal = SYMMETRIC & (j < i + BLOCK_M)
            if CAREFUL:
                top = tl.maximum(row_max, tl.max(s, 1))
                e = tl.exp2(s - finite(top)[:, None])
                row_sum = tl.fma(row_sum, tl.exp2(row_max - finite(top)), tl.sum(e, 1))
                row_max = top
                if COLUMNS:
                    if SELF and diagonal:
                        s = tl.where(columns[None, :] == rows[:, None], NEG_INF, s)
                    top = tl.maximum(col_max, tl.max(s, 0))
                    e = tl.exp2(s - finite(top)[None, :])
                    col_sum = tl.fma(col_sum, tl.exp2(col_max - finite(top)), tl.sum(e, 0))
                    tl.store(col_sums + columns, col_sum, mask=columns < N)
                    tl.store(col_sums + col_plane + columns, top, mask=columns < N)
            else:
                e = tl.exp2(s)
                row_sum += tl.sum(e, 1)
                if COLUMNS:
                    if SELF and diagonal:
                        e = tl.where(columns[None, :] == rows[:, None], 0.0, e)
                    tl.store(col_sums + columns, col_sum + tl.sum(e, 0), mask=columns < N)
                    if i == i_begin:
                        zeros = tl.zeros((BLOCK_N,), ACC)
                        tl.store(col_sums + col_plane + columns, zeros, mask=columns < N)
        if not CAREFUL:
            row_max = tl.zeros((BLOCK_M,), ACC)
        tl.store(row_sums + rows, row_sum, mask=rows < M)
        tl.store(row_sums + row_plane + rows, row_max, mask=rows < M)
        if COLUMNS:
            tl.debug_barrier()


@triton.jit
def pair_reduce(
    a, b, bias, key_a, key_b, scale, bound, slots, M, N, D, offset, stride, super_rows,
    KIND: tl.constexpr, SYMMETRIC: tl.constexpr, SELF: tl.constexpr, COLUMNS: tl.constexpr, NORMALIZED: tl.constexpr, ONE_SET: tl.constexpr,
    EXTREMA: tl.constexpr, RESIDENT: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(sum of exp2(s2 - maximum), maximum) of the candidate logits, per row and per column, as partial results in private slots.

    One program per pair of super-tiles (super_rows rows x super_rows columns); with SYMMETRIC only pairs at or above the diagonal,
    whose column results belong to the mirrored rows. No atomics: every slot has one writer. Logits bounded by DIRECT
    (scale and row norms; read on the device) are summed without a shift and stored with maximum 0.

    Slots, S super-tiles: rows ``[S_n (+ 1 if SYMMETRIC), G, M]`` sums, then as many maxima; without SYMMETRIC, with COLUMNS, columns
    ``[S_m, G, N]`` sums, then maxima. SYMMETRIC: slot S holds the diagonal super-tile's mirrored part.

    Flops: 2 M N D (SYMMETRIC: N^2 D), M N (half) exponentials. Bytes: (M + N) D elements per row of super-tiles from L2,
    16 bytes of slots per row and super-tile.
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
        limit = tl.load(bound + g * 3) * tl.load(bound + g * 3 + (0 if ONE_SET else 1)) * tl.abs(logit_scale)
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
        if (not EXTREMA) and (limit <= DIRECT):
            _reduce_super(
                a, b, bias, key_a, key_b, scale2, row_base, col_base, row_planes, col_planes, M, N, D, offset, stride,
                i_begin, i_end, j_begin, j_end, False, KIND, SYMMETRIC, SELF, COLUMNS, RESIDENT, EVEN_K, PRECISION, ACC,
                INTERPRET, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            _reduce_super(
                a, b, bias, key_a, key_b, scale2, row_base, col_base, row_planes, col_planes, M, N, D, offset, stride,
                i_begin, i_end, j_begin, j_end, True, KIND, SYMMETRIC, SELF, COLUMNS, RESIDENT, EVEN_K, PRECISION, ACC,
                INTERPRET, BLOCK_M, BLOCK_N // 2, BLOCK_K,
            )  # fmt: skip
