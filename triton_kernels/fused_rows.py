"""`fused_rows` finds log-sum-exp and softmax-weighted mean of the columns in one pass.

It is for columns that need no gradient.
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
    round_to,
    row_pointers,
)


@triton.jit(do_not_specialize=["M", "N", "offset", "stride", "split_columns"])
def fused_rows(
    a,  # [G, M, D]
    b,  # [G, N, D]
    bias,  # [G, N], or None
    key_a,  # [G, M], or None
    key_b,  # [G, N], or None
    scale,  # []
    slots,  # [2, splits, G, M], written
    partial,  # [splits, G, M, D], written
    M,
    N,
    D,
    offset,
    stride,
    split_columns,
    KIND: tl.constexpr,  # of candidates (problem.py)
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write sum, maximum and ``sum_j exp2(s2 - maximum) b_j`` per row and split of the columns.

    The slots hold sums, then maxima, as those of pair_reduce do; `partial` is not normalised. One
    program serves BLOCK_M rows and split_columns columns of one group, and D is at most BLOCK_K.
    The maxima are updated along the way, so any logits will do. The weights go from registers into
    the second product, which on sm_90 needs a safe ptxas (support.py).

    Flops: 4 M N D, and M N exponentials. Bytes: N D elements per row of tiles from L2, and 4 M D
    per split written.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    splits = tl.cdiv(N, split_columns)
    programs = tiles_m * splits
    group = (tl.program_id(0) // programs).to(tl.int64)
    row_plane = (tl.num_programs(0) // programs).to(tl.int64) * M
    split = tl.program_id(0) % programs % splits
    i = tl.program_id(0) % programs // splits * BLOCK_M
    rows = i + tl.arange(0, BLOCK_M)
    x = load_rows(row_pointers(a + group * M * D, i, BLOCK_M, M, D), 0, D, BLOCK_K, EVEN_K)
    scale2 = tl.load(scale) * LOG2E
    if key_a is not None:
        key_a += group * M
        key_b += group * N
    row_max = tl.full((BLOCK_M,), NEG_INF, ACC)
    row_sum = tl.zeros((BLOCK_M,), ACC)
    total = tl.zeros((BLOCK_M, BLOCK_K), ACC)
    for j in range(split * split_columns, tl.minimum((split + 1) * split_columns, N), BLOCK_N):
        columns = j + tl.arange(0, BLOCK_N)
        y = load_rows(row_pointers(b + group * N * D, j, BLOCK_N, N, D), 0, D, BLOCK_K, EVEN_K)
        s = multiply(x, tl.trans(y), tl.zeros((BLOCK_M, BLOCK_N), ACC), PRECISION, INTERPRET)
        if bias is not None:
            shift = tl.load(bias + group * N + columns, mask=columns < N, other=0.0) * LOG2E
            s = tl.fma(s, scale2, shift[None, :])
        else:
            s = s * scale2
        s = mask_tile(s, NEG_INF, i, j, key_a, key_b, M, N, offset, stride, KIND, BLOCK_M, BLOCK_N)
        top = tl.maximum(row_max, tl.max(s, 1))
        fade = tl.exp2(row_max - finite(top))
        e = tl.exp2(s - finite(top)[:, None])
        row_sum = tl.fma(row_sum, fade, tl.sum(e, 1))
        row_max = top
        total = multiply(
            round_to(e, y.dtype, INTERPRET), y, total * fade[:, None], PRECISION, INTERPRET
        )
    place = split * row_plane + group * M + rows
    tl.store(slots + place, row_sum, mask=rows < M)
    tl.store(slots + splits * row_plane + place, row_max, mask=rows < M)
    features = tl.arange(0, BLOCK_K)
    kept = (rows < M)[:, None] & (features < D)[None, :]
    tl.store(partial + (place * D)[:, None] + features[None, :], total, mask=kept)
