"""The tiles of one `pair_reduce` program, for rows alone and for rows and columns.

These are device functions. The kernel that calls them is in pair_reduce.py.
"""

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


@triton.jit
def _logits(
    x,  # [BLOCK_M, D], where RESIDENT
    y,  # [D, BLOCK_N], where RESIDENT
    a_rows,  # pointers [BLOCK_M]
    b_rows,  # pointers [BLOCK_N]
    bias,  # [N], or None
    key_a,  # [M], or None
    key_b,  # [N], or None
    scale2,  # [], times log2(e)
    i,  # the tile's first row
    j,  # the tile's first column
    M,
    N,
    D,
    offset,
    stride,
    KIND: tl.constexpr,  # of candidates (problem.py)
    RESIDENT: tl.constexpr,  # whether D <= BLOCK_K
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The base-2 logits of one tile ``[BLOCK_M, BLOCK_N]``, -inf where they are masked.

    With RESIDENT, x and y are the operands. Otherwise they are not read, and the rows behind the
    pointers are.
    """
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
    a,  # [M, D]
    b,  # [N, D]
    bias,  # [N], or None
    key_a,  # [M], or None
    key_b,  # [N], or None
    scale2,  # [], times log2(e)
    row_sums,  # [M], written
    row_plane,  # from the sums to the maxima
    M,
    N,
    D,
    offset,
    stride,
    i_begin,  # this program's first row
    i_end,
    j_begin,  # this program's first column
    j_end,
    CAREFUL: tl.constexpr,
    KIND: tl.constexpr,  # of candidates (problem.py)
    RESIDENT: tl.constexpr,  # whether D <= BLOCK_K
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Reduce one program's tiles, for rows alone.

    The statistics of rows stay in registers along a row of tiles.
    """
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
                x,
                y,
                a_rows,
                b_rows,
                bias,
                key_a,
                key_b,
                scale2,
                i,
                j,
                M,
                N,
                D,
                offset,
                stride,
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
            if CAREFUL:
                row_max, row_sum = _add(row_max, row_sum, s, 1)
            else:
                row_sum += tl.sum(tl.exp2(s), 1)
        tl.store(row_sums + rows, row_sum, mask=rows < M)
        tl.store(row_sums + row_plane + rows, row_max, mask=rows < M)


@triton.jit
def _reduce_both(
    a,  # [M, D]
    b,  # [N, D]
    bias,  # [N], or None
    key_a,  # [M], or None
    key_b,  # [N], or None
    scale2,  # [], times log2(e)
    row_sums,  # [M], written
    row_plane,  # from the sums to the maxima
    col_sums,  # [N], written
    col_plane,  # from the sums to the maxima
    M,
    N,
    D,
    offset,
    stride,
    i_begin,  # this program's first row
    i_end,
    j_begin,  # this program's first column
    j_end,
    CAREFUL: tl.constexpr,
    KIND: tl.constexpr,  # of candidates (problem.py)
    SYMMETRIC: tl.constexpr,
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
    """Reduce one program's tiles, for rows and columns.

    The statistics of columns stay in registers down a column of tiles. They are a tile of sums
    over the FOLD rows that a thread holds, so that threads exchange them once and not per tile.
    Those of rows are updated in this program's own slot. Without CAREFUL the two planes of the
    slot take turns as source and target, which spares the loop a barrier. The last column of tiles
    writes the first plane.

    With SYMMETRIC, square blocks on the diagonal are computed whole and count for their rows
    alone. Blocks above the diagonal count for rows and columns.
    """
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
                x,
                y,
                a_rows,
                b_rows,
                bias,
                key_a,
                key_b,
                scale2,
                i,
                j,
                M,
                N,
                D,
                offset,
                stride,
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
            if CAREFUL:
                row_max = tl.load(row_sums + row_plane + rows, mask=started, other=NEG_INF)
                row_max, row_sum = _add(row_max, row_sum, s, 1)
                # Every thread must have read the slot before one overwrites it.
                tl.debug_barrier()
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
        # What was written must be there when the next column of tiles reads it.
        tl.debug_barrier()
    if not CAREFUL:
        for i in range(i_begin, i_end, BLOCK_M):
            rows = i + tl.arange(0, BLOCK_M)
            tl.store(row_sums + row_plane + rows, tl.zeros((BLOCK_M,), ACC), mask=rows < M)


@triton.jit
def _add(
    maximum,  # [rows or columns]
    total,  # [rows or columns]
    s,  # [BLOCK_M, BLOCK_N]
    AXIS: tl.constexpr,
):
    """The running maximum, and sum of ``exp2(s - maximum)``, with the logits of one more tile."""
    top = tl.maximum(maximum, tl.max(s, AXIS))
    shift = finite(top)
    e = tl.exp2(s - tl.expand_dims(shift, AXIS))
    return top, tl.fma(total, tl.exp2(maximum - shift), tl.sum(e, AXIS))
