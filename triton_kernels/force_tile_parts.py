"""Device functions of the kernels over tiles: places, affinities and products of one tile."""

from __future__ import annotations

import triton
import triton.language as tl

from .force_math import add_products, log_affinity


@triton.jit
def place_of_program(
    M,
    N,
    split_columns,  # columns of a program
    BLOCK_M: tl.constexpr,
):
    """``(g, G, split, i, j_begin, j_end)`` of this program.

    Programs count groups, then blocks of BLOCK_M rows, then splits of the columns.
    """
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
    d,  # [BLOCK_M, BLOCK_N]
    rows,  # [BLOCK_M], indices
    columns,  # [BLOCK_N], indices
    factors,  # [2, K, G], in two parts
    lse_rows,  # [2, K, G, M], in two parts
    lse_cols,  # [2, K, G, N], in two parts
    k,  # temperature
    K,  # temperatures
    g,  # group
    G,  # groups
    M,
    N,
    SELF: tl.constexpr,  # a of self pairs
    FLOOR: tl.constexpr,  # lower bound of a
    DENOMINATOR: tl.constexpr,  # lower bound of R + C
):
    """a of a tile at temperature k: ``[BLOCK_M, BLOCK_N]``."""
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
def insert(
    state,  # [BLOCK_M, KP]
    k,  # temperature
    values,  # [BLOCK_M]
):
    """The state with its column k replaced by `values`."""
    return tl.where(tl.arange(0, state.shape[1])[None, :] == k, values[:, None], state)


@triton.jit
def tile_product(
    w,  # [BLOCK_M, BLOCK_N]
    tile,  # [programs, BLOCK_M, BLOCK_N], scratch
    y,  # [N, D], zeros up to a tile's end
    out,  # [M, D]
    i,  # first row
    j,  # first column
    M,
    N,
    D,
    started,  # rows below it have sums already
    ACC: tl.constexpr,  # the dtype of sums
    EVEN_K: tl.constexpr,  # whether BLOCK_D divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,  # points of a step of a product
):
    """Add ``sum_j w_ij (y_j - y_i)`` to the rows of out from i on, or set rows from `started` on.

    Only this program touches those rows of out and its part of `tile`, which holds w.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK_M * BLOCK_N
    here = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    # Every thread must have read the tile before.
    tl.debug_barrier()
    tl.store(tile + place + here, w)
    # Every thread must see the tile, and the sums of the one before.
    tl.debug_barrier()
    rows = i + tl.arange(0, BLOCK_M)
    total_w = tl.sum(w, 1)
    for k in range(0, D, BLOCK_D):
        features = k + tl.arange(0, BLOCK_D)
        inside = (features < (k + BLOCK_D if EVEN_K else D))[None, :]
        total = add_products(
            tile + place,
            y,
            j,
            D,
            1,
            features,
            inside,
            tl.zeros((BLOCK_M, BLOCK_D), ACC),
            True,
            PRECISION,
            INTERPRET,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            SLICE,
        )
        own = rows.to(tl.int64)[:, None] * D + features[None, :]
        total -= total_w[:, None] * tl.load(y + own, mask=inside, other=0.0)
        target = out + own
        total += tl.load(target, mask=(rows < started)[:, None] & inside, other=0.0)
        tl.store(target, total, mask=(rows < M)[:, None] & inside)
