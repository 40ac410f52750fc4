"""The kernels of the sigmoid family.

`sigmoid_reduce` and `sigmoid_finish` run forward, `sigmoid_terms` and `sigmoid_weight` backward.
They work in base 2: ``y2_ij = log2(e) sign (scale <a_i, b_j> + row_bias_i)``. A pair that is no
candidate has y2 = -inf, whose softplus is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .pair_weight import HALF_RANGE, _load_terms, _store
from .prepare import _raise_bound
from .tile_math import (
    LN2,
    LOG2E,
    NEG_INF,
    load_rows,
    log1p,
    mask_tile,
    multiply,
    products,
    round_to,
    row_pointers,
    sigmoid,
    softplus,
)


@triton.jit
def _softplus2(
    t,  # any shape
):
    """``log2(1 + 2^t)``, as max(t, 0) plus the logarithm of 1 + e with ``e = 2^-|t|``.

    In float32 the logarithm is a minimax polynomial with a relative error of 3e-8.
    """
    e = tl.exp2(-tl.abs(t))
    if t.dtype == tl.float64:
        return tl.maximum(t, 0.0) + log1p(e) * LOG2E
    p = tl.fma(e, 0.0075491759531384945, -0.042567034457811722)
    p = tl.fma(p, e, 0.11285614325531375)
    p = tl.fma(p, e, -0.19711892200531551)
    p = tl.fma(p, e, 0.27564138656638715)
    p = tl.fma(p, e, -0.35840846489352853)
    p = tl.fma(p, e, 0.48069295621806332)
    p = tl.fma(p, e, -0.72134020795076748)
    p = tl.fma(p, e, 1.4426949974347122)
    return tl.fma(p, e, tl.maximum(t, 0.0))


@triton.jit(do_not_specialize=["M", "N", "offset", "stride", "super_rows"])
def sigmoid_reduce(
    a,  # [G, M, D]
    b,  # [G, N, D]
    row_bias,  # [G, M], or None
    key_a,  # [G, M], or None
    key_b,  # [G, N], or None
    scale,  # []
    slots,  # [1 or 2, S, G, M], written
    M,
    N,
    D,
    offset,
    stride,
    super_rows,
    KIND: tl.constexpr,  # of candidates (problem.py)
    SIGN: tl.constexpr,  # 1 or -1
    EXTREMA: tl.constexpr,
    RESIDENT: tl.constexpr,  # whether D <= BLOCK_K
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sums of ``log2(1 + 2^y2)`` over the candidate columns, and with EXTREMA maxima of y2.

    They are partial results in private slots. One program serves a pair of super-tiles, which is
    super_rows rows by super_rows columns. With S super-tiles of columns the slots are ``[S, G, M]``
    sums, then, with EXTREMA, as many maxima.

    Flops: 2 M N D, and M N exponentials. Bytes: (M + N) D elements per row of super-tiles from
    L2, and 4 bytes of slots per row and super-tile, with EXTREMA 8.
    """
    supers_m = tl.cdiv(M, super_rows)
    supers_n = tl.cdiv(N, super_rows)
    pairs = supers_m * supers_n
    group = (tl.program_id(0) // pairs).to(tl.int64)
    row_plane = (tl.num_programs(0) // pairs).to(tl.int64) * M
    super_i = tl.program_id(0) % pairs // supers_n
    super_j = tl.program_id(0) % pairs % supers_n
    slots += super_j * row_plane + group * M
    scale2 = tl.load(scale) * (LOG2E * SIGN)
    a += group * M * D
    b += group * N * D
    if row_bias is not None:
        row_bias += group * M
    if key_a is not None:
        key_a += group * M
        key_b += group * N
    for i in range(super_i * super_rows, tl.minimum((super_i + 1) * super_rows, M), BLOCK_M):
        rows = i + tl.arange(0, BLOCK_M)
        a_rows = row_pointers(a, i, BLOCK_M, M, D)
        x = load_rows(a_rows, 0, D, BLOCK_K, EVEN_K) if RESIDENT else 0
        shift = tl.zeros((BLOCK_M,), ACC)
        if row_bias is not None:
            shift = tl.load(row_bias + rows, mask=rows < M, other=0.0) * (LOG2E * SIGN)
        row_sum = tl.zeros((BLOCK_M,), ACC)
        row_max = tl.full((BLOCK_M,), NEG_INF, ACC)
        for j in range(super_j * super_rows, tl.minimum((super_j + 1) * super_rows, N), BLOCK_N):
            b_rows = row_pointers(b, j, BLOCK_N, N, D)
            if RESIDENT:
                y = tl.trans(load_rows(b_rows, 0, D, BLOCK_K, EVEN_K))
                t = multiply(x, y, tl.zeros((BLOCK_M, BLOCK_N), ACC), PRECISION, INTERPRET)
            else:
                t = products(
                    a_rows, b_rows, D, ACC, PRECISION, INTERPRET, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K
                )
            t = tl.fma(t, scale2, shift[:, None])
            t = mask_tile(
                t, NEG_INF, i, j, key_a, key_b, M, N, offset, stride, KIND, BLOCK_M, BLOCK_N
            )
            row_sum += tl.sum(_softplus2(t), 1)
            if EXTREMA:
                row_max = tl.maximum(row_max, tl.max(t, 1))
        tl.store(slots + rows, row_sum, mask=rows < M)
        if EXTREMA:
            tl.store(slots + supers_n * row_plane + rows, row_max, mask=rows < M)


@triton.jit(do_not_specialize=["M", "N", "positive", "slot_count"])
def sigmoid_finish(
    slots,  # [1 or 2, slot_count, G, M]
    a,  # [G, M, D]
    b,  # [G, N, D]
    row_bias,  # [G, M], or None
    scale,  # []
    rows,  # [G, M], written
    pos,  # [G, M], or None
    row_max,  # [G, M], or None
    M,
    N,
    positive,  # offset of the positive's column
    slot_count,
    D: tl.constexpr,
    SIGN: tl.constexpr,  # 1 or -1
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLOTS: tl.constexpr,  # slots merged at a time
):
    """The rows' sums and maxima from sigmoid_reduce's slots.

    With a positive, its logit is stored and its ``softplus(-y)`` added. One program serves BLOCK
    rows of one group. Bytes: 4 M slot_count, with maxima 8, and with a positive 2 M D elements.
    """
    blocks = tl.cdiv(M, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    stride = (tl.num_programs(0) // blocks).to(tl.int64) * M
    first = tl.program_id(0) % blocks * BLOCK
    index = first + tl.arange(0, BLOCK)
    inside = index < M
    slots += group * M
    total = tl.zeros((BLOCK,), ACC)
    top = tl.full((BLOCK,), NEG_INF, ACC)
    for begin in range(0, slot_count, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        pointers = slots + slot.to(tl.int64)[:, None] * stride + index[None, :]
        kept = (slot < slot_count)[:, None] & inside[None, :]
        total += tl.sum(tl.load(pointers, mask=kept, other=0.0), 0)
        if row_max is not None:
            top = tl.maximum(
                top, tl.max(tl.load(pointers + slot_count * stride, mask=kept, other=NEG_INF), 0)
            )
    total *= LN2
    if row_max is not None:
        tl.store(row_max + group * M + index, top * LN2, mask=inside)
    if pos is not None:
        column = (index + positive) % N
        x_rows = row_pointers(a + group * M * D, first, BLOCK, M, D)
        y_rows = b + group * N * D + column.to(tl.int64) * D
        target = tl.zeros((BLOCK,), ACC)
        for k in range(0, D, BLOCK_K):
            x = load_rows(x_rows, k, D, BLOCK_K, EVEN_K).to(ACC)
            target += tl.sum(x * load_rows(y_rows, k, D, BLOCK_K, EVEN_K).to(ACC), 1)
        shift = tl.zeros((BLOCK,), ACC)
        if row_bias is not None:
            shift = tl.load(row_bias + group * M + index, mask=inside, other=0.0) * (LOG2E * SIGN)
        # The positive's logit is scaled as in sigmoid_reduce.
        target = tl.fma(target, tl.load(scale) * (LOG2E * SIGN), shift) * LN2
        tl.store(pos + group * M + index, target * SIGN, mask=inside)
        total += softplus(-target)
    tl.store(rows + group * M + index, total, mask=inside)


@triton.jit(do_not_specialize=["M"])
def sigmoid_terms(
    g,  # [G, M]
    row_bias,  # [G, M], or None
    pos,  # [G, M], or None
    row_terms,  # [G, M, 2], written
    pull,  # [G, M], written
    unit,  # [1], raised to the largest weight; None: not float16
    M,
    SIGN: tl.constexpr,  # 1 or -1
    BLOCK: tl.constexpr,
):
    """The terms of a row: row_bias in base 2 and g, both times SIGN.

    `pull` becomes minus the weight of the positive, `unit` the largest |g|. One program serves
    BLOCK rows of one group. Bytes: O(M).
    """
    blocks = tl.cdiv(M, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = index < M
    row = group * M + index
    weight = tl.load(g + row, mask=inside, other=0.0) * SIGN
    shift = tl.zeros((BLOCK,), weight.dtype)
    if row_bias is not None:
        shift = tl.load(row_bias + row, mask=inside, other=0.0) * (LOG2E * SIGN)
    tl.store(row_terms + 2 * row, shift, mask=inside)
    tl.store(row_terms + 2 * row + 1, weight, mask=inside)
    if pos is not None:
        target = tl.load(pos + row, mask=inside, other=0.0) * SIGN
        tl.store(pull + row, weight * sigmoid(-target), mask=inside)
    if unit is not None:
        size = tl.abs(weight)
        _raise_bound(unit, tl.max(tl.where(size < float("inf"), size, 0.0), 0))


@triton.jit(do_not_specialize=["M", "N", "offset", "stride"])
def sigmoid_weight(
    a,  # [G, M, D]
    b,  # [G, N, D]
    key_a,  # [G, M], or None
    key_b,  # [G, N], or None
    scale,  # []
    row_terms,  # [G, M, 2]
    unit,  # [1], the largest weight; None: not float16
    sums,  # [tiles_n, G, M], or None
    panel,  # [G, M, ld], written
    M,
    N,
    D,
    offset,
    stride,
    KIND: tl.constexpr,  # of candidates (problem.py)
    SIGN: tl.constexpr,  # 1 or -1
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    PRECISION: tl.constexpr,  # tl.dot's input_precision
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,  # rows of tiles in turn
):
    """``W_ij = weight_i / (1 + 2^-y2_ij)``, 0 where j is no candidate of i, and its row sums.

    The sums are by tile of columns. The leading dimension ld of the panel is N rounded up to 16
    elements. One program serves a tile, GROUP rows of tiles in turn, so that operands stay in L2.
    With `unit`, for float16, all results are multiples of ``unit / HALF_RANGE``.

    Flops: 2 M N D, and M N exponentials. Bytes: M N elements written.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tiles_m * tiles_n
    group = (tl.program_id(0) // tiles).to(tl.int64)
    pid = tl.program_id(0) % tiles
    band = pid // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - band, GROUP)
    i = (band + pid % (GROUP * tiles_n) % height) * BLOCK_M
    tile_j = pid % (GROUP * tiles_n) // height
    j = tile_j * BLOCK_N
    a_rows = row_pointers(a + group * M * D, i, BLOCK_M, M, D)
    b_rows = row_pointers(b + group * N * D, j, BLOCK_N, N, D)
    d = products(a_rows, b_rows, D, ACC, PRECISION, INTERPRET, EVEN_K, BLOCK_M, BLOCK_N, BLOCK_K)
    rows = i + tl.arange(0, BLOCK_M)
    shift, weight = tl.split(_load_terms(row_terms + group * M * 2, tl.minimum(rows, M - 1)))
    if unit is not None:
        largest = tl.load(unit)
        weight *= tl.where(largest > 0.0, HALF_RANGE / largest, 0.0)
    # The logits are rounded as in sigmoid_reduce.
    t = tl.fma(d, tl.load(scale) * (LOG2E * SIGN), shift[:, None])
    w = weight[:, None] / (1.0 + tl.exp2(-t))
    if key_a is not None:
        key_a += group * M
        key_b += group * N
    w = mask_tile(w, 0.0, i, j, key_a, key_b, M, N, offset, stride, KIND, BLOCK_M, BLOCK_N)
    if sums is not None:
        row_plane = (tl.num_programs(0) // tiles).to(tl.int64) * M
        tl.store(sums + tile_j * row_plane + group * M + rows, tl.sum(w, 1), mask=rows < M)
    ld = tl.cdiv(N, 16) * 16
    _store(
        panel + group * M * ld,
        ld,
        round_to(w, panel.dtype.element_ty, INTERPRET),
        i,
        j,
        M,
        N,
        BLOCK_M,
        BLOCK_N,
    )
