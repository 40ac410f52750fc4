"""`pair_reduce`: row and column (maximum, sum of exponentials) of the logits, in one pass over the tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from .tile_math import (
    LOG2E,
    NEG_INF,
    finite,
    load_rows,
    mask_tile,
    multiply,
    products,
    row_pointers,
)

DIRECT = tl.constexpr(60.0)
"""Logits bounded by this need no shift: exp stays within float32's normal range, sums of 2^30 of them too."""


@triton.jit
def _logits(
    x, y, a_rows, b_rows, bias, key_a, key_b, scale2, i, j, M, N, D, offset, stride,
    KIND: tl.constexpr, RESIDENT: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Base-2 logits of one tile, -inf where masked; RESIDENT: x ``[BLOCK_M, D]`` and y ``[D, BLOCK_N]`` are the operands, else they are not read."""
    if RESIDENT:
        s = multiply(x, y, tl.zeros((BLOCK_M, BLOCK_N), ACC), PRECISION, INTERPRET)
    else:
        s = products(
            a_rows, b_rows, D, ACC, PRECISION, INTERPRET, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K
        )
    shift = tl.zeros((BLOCK_N,), ACC)
    if bias is not None:
        columns = j + tl.arange(0, BLOCK_N)
        shift = tl.load(bias + columns, mask=columns < N, other=0.0) * LOG2E
    s = tl.fma(s, scale2, shift[None, :])
    return mask_tile(s, NEG_INF, i, j, key_a, key_b, M, N, offset, stride, KIND, BLOCK_M, BLOCK_N)


@triton.jit
def _reduce_rows(
    a, b, bias, key_a, key_b, scale2, row_sums, row_plane, M, N, D, offset, stride, i_begin, i_end, j_begin, j_end,
    CAREFUL: tl.constexpr, KIND: tl.constexpr, RESIDENT: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program's tiles, rows only: their statistics stay in registers along a row of tiles."""
    for i in range(i_begin, i_end, BLOCK_M):
        rows = i + tl.arange(0, BLOCK_M)
        a_rows = row_pointers(a, i, BLOCK_M, M, D)
        x = load_rows(a_rows, 0, D, BLOCK_K, EVEN_K) if RESIDENT else 0
        row_max = tl.full((BLOCK_M,), NEG_INF if CAREFUL else 0.0, ACC)
        row_sum = tl.zeros((BLOCK_M,), ACC)
        for j in range(j_begin, j_end, BLOCK_N):
            b_rows = row_pointers(b, j, BLOCK_N, N, D)
            y = tl.trans(load_rows(b_rows, 0, D, BLOCK_K, EVEN_K)) if RESIDENT else 0
            s = _logits(
                x, y, a_rows, b_rows, bias, key_a, key_b, scale2, i, j, M, N, D, offset, stride,
                KIND, RESIDENT, EVEN_K, PRECISION, ACC, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            if CAREFUL:
                row_max, row_sum = _add(row_max, row_sum, s, 1)
            else:
                row_sum += tl.sum(tl.exp2(s), 1)
        tl.store(row_sums + rows, row_sum, mask=rows < M)
        tl.store(row_sums + row_plane + rows, row_max, mask=rows < M)


@triton.jit
def _reduce_both(
    a, b, bias, key_a, key_b, scale2, row_sums, row_plane, col_sums, col_plane, M, N, D, offset, stride,
    i_begin, i_end, j_begin, j_end,
    CAREFUL: tl.constexpr, KIND: tl.constexpr, SYMMETRIC: tl.constexpr, RESIDENT: tl.constexpr, FOLD: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program's tiles, rows and columns. Column statistics stay in registers down a column of tiles (as a tile of sums over the FOLD
    rows that a thread holds, so that threads exchange them once, not per tile); those of rows are updated in this program's own slot.
    Without CAREFUL the slot's two planes take turns as source and target, which spares the loop a barrier; the last column of tiles
    writes the first plane.
    SYMMETRIC: square blocks on the diagonal are computed whole and count for their rows only, those above it for both."""
    SQUARE: tl.constexpr = BLOCK_M if BLOCK_M > BLOCK_N else BLOCK_N
    for j in range(j_begin, j_end, BLOCK_N):
        columns = j + tl.arange(0, BLOCK_N)
        b_rows = row_pointers(b, j, BLOCK_N, N, D)
        y = tl.trans(load_rows(b_rows, 0, D, BLOCK_K, EVEN_K)) if RESIDENT else 0
        col_max = tl.full((BLOCK_N,), NEG_INF if CAREFUL else 0.0, ACC)
        col_sum = tl.zeros((BLOCK_N,) if CAREFUL else (BLOCK_M // (8 * FOLD), 8, BLOCK_N), ACC)
        source = row_plane * 0
        target = row_plane * 0
        if not CAREFUL:
            target = row_plane * ((j_end - 1 - j) // BLOCK_N % 2)
            source = row_plane - target
        i_last = i_end
        if SYMMETRIC:
            i_last = tl.minimum(i_end, j // SQUARE * SQUARE + SQUARE)
        for i in range(i_begin, i_last, BLOCK_M):
            rows = i + tl.arange(0, BLOCK_M)
            first = j_begin
            if SYMMETRIC:
                first = tl.maximum(j_begin, i // SQUARE * SQUARE)
            started = rows < tl.where(j > first, M, 0)
            row_sum = tl.load(row_sums + source + rows, mask=started, other=0.0)
            a_rows = row_pointers(a, i, BLOCK_M, M, D)
            x = load_rows(a_rows, 0, D, BLOCK_K, EVEN_K) if RESIDENT else 0
            s = _logits(
                x, y, a_rows, b_rows, bias, key_a, key_b, scale2, i, j, M, N, D, offset, stride,
                KIND, RESIDENT, EVEN_K, PRECISION, ACC, INTERPRET, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            if CAREFUL:
                row_max = tl.load(row_sums + row_plane + rows, mask=started, other=NEG_INF)
                row_max, row_sum = _add(row_max, row_sum, s, 1)
                tl.debug_barrier()  # every thread has read the slot before one overwrites it
                tl.store(row_sums + rows, row_sum, mask=rows < M)
                tl.store(row_sums + row_plane + rows, row_max, mask=rows < M)
                if (not SYMMETRIC) or (j >= i // SQUARE * SQUARE + SQUARE):
                    col_max, col_sum = _add(col_max, col_sum, s, 0)
            else:
                e = tl.exp2(s)
                tl.store(row_sums + target + rows, row_sum + tl.sum(e, 1), mask=rows < M)
                if (not SYMMETRIC) or (j >= i // SQUARE * SQUARE + SQUARE):
                    col_sum += tl.sum(tl.reshape(e, (BLOCK_M // (8 * FOLD), FOLD, 8, BLOCK_N)), 1)
        if not CAREFUL:
            col_sum = tl.sum(tl.sum(col_sum, 0), 0)
        tl.store(col_sums + columns, col_sum, mask=columns < N)
        tl.store(col_sums + col_plane + columns, col_max, mask=columns < N)
        tl.debug_barrier()  # what was written is there when the next column of tiles reads it
    if not CAREFUL:
        for i in range(i_begin, i_end, BLOCK_M):
            rows = i + tl.arange(0, BLOCK_M)
            tl.store(row_sums + row_plane + rows, tl.zeros((BLOCK_M,), ACC), mask=rows < M)


@triton.jit
def _add(maximum, total, s, AXIS: tl.constexpr):
    """Running (maximum, sum of exp2(. - maximum)) with the logits of one more tile."""
    top = tl.maximum(maximum, tl.max(s, AXIS))
    shift = finite(top)
    e = tl.exp2(s - tl.expand_dims(shift, AXIS))
    return top, tl.fma(total, tl.exp2(maximum - shift), tl.sum(e, AXIS))


@triton.jit(do_not_specialize=["M", "N", "offset", "stride", "super_rows"])
def pair_reduce(
    a, b, bias, key_a, key_b, scale, bound, slots, M, N, D, offset, stride, super_rows,
    KIND: tl.constexpr, SYMMETRIC: tl.constexpr, COLUMNS: tl.constexpr, NORMALIZED: tl.constexpr,
    EXTREMA: tl.constexpr, RESIDENT: tl.constexpr, FOLD: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
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
                    a, b, bias, key_a, key_b, scale2, row_base, row_planes, col_base, col_planes, M, N, D, offset, stride,
                    i_begin, i_end, j_begin, j_end, False, KIND, SYMMETRIC, RESIDENT, FOLD, EVEN_K, PRECISION, ACC, INTERPRET,
                    BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
            else:
                _reduce_both(
                    a, b, bias, key_a, key_b, scale2, row_base, row_planes, col_base, col_planes, M, N, D, offset, stride,
                    i_begin, i_end, j_begin, j_end, True, KIND, SYMMETRIC, RESIDENT, FOLD, EVEN_K, PRECISION, ACC, INTERPRET,
                    BLOCK_M, BLOCK_N // 2, BLOCK_K,
                )  # fmt: skip
        elif direct:
            _reduce_rows(
                a, b, bias, key_a, key_b, scale2, row_base, row_planes, M, N, D, offset, stride,
                i_begin, i_end, j_begin, j_end, False, KIND, RESIDENT, EVEN_K, PRECISION, ACC, INTERPRET,
                BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        else:
            _reduce_rows(
                a, b, bias, key_a, key_b, scale2, row_base, row_planes, M, N, D, offset, stride,
                i_begin, i_end, j_begin, j_end, True, KIND, RESIDENT, EVEN_K, PRECISION, ACC, INTERPRET,
                BLOCK_M, BLOCK_N // 2, BLOCK_K,
            )  # fmt: skip
