"""What comes before the tiles, forward and backward.

`prepare` writes normalised, rounded rows and the bound on the logits. `prepare_backward` writes
the terms of the gradient weights per row and column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile_math import EPS, LOG2E, load_rows, log1p, round_to, row_pointers, sigmoid

TINY = tl.constexpr(2.0**-60)
BOUNDS = 3
"""A group has three bounds: the largest row norms of a and of b, and the largest finite |bias|."""


@triton.jit
def _raise_bound(
    bound,  # [] float32, not negative
    value,  # []
):
    """Raise `bound` to `value` by an atomic maximum of their bits.

    Floats that are not negative compare like their bits. The result does not depend on the order,
    and NaN is above everything.
    """
    bits = bound.to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(bits, value.to(tl.float32).to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def _kept(
    x,  # any shape
):
    """x with infinity in place of NaN, which a maximum may drop."""
    return tl.where(x == x, x, float("inf"))


@triton.jit
def _prepare_rows(
    x,  # [count, D]
    hat,  # [count, D], where the rounded rows go
    inv,  # [count], where the inverse norms go
    bound,  # [], the largest norm
    first,  # the first row of this program
    count,  # rows
    D,
    NORMALIZE: tl.constexpr,
    ROUND: tl.constexpr,  # whether rows are rounded to another dtype or normalised
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Normalise and round BLOCK rows, or raise the bound to the largest of their norms."""
    rows = first + tl.arange(0, BLOCK)
    inside = rows < count
    pointers = row_pointers(x, first, BLOCK, count, D)
    square = tl.zeros((BLOCK,), ACC)
    for k in range(0, D, BLOCK_K):
        part = load_rows(pointers, k, D, BLOCK_K, EVEN_K).to(ACC)
        square += tl.sum(part * part, 1)
    norm = tl.sqrt(square)
    factor = tl.full((BLOCK,), 1.0, ACC)
    if NORMALIZE:
        factor = 1.0 / tl.where(norm < EPS, EPS, norm)
        tl.store(inv + rows, factor, mask=inside)
    else:
        _raise_bound(bound, tl.max(_kept(norm), 0))
    if ROUND:
        targets = row_pointers(hat, first, BLOCK, count, D)
        for k in range(0, D, BLOCK_K):
            features = k + tl.arange(0, BLOCK_K)
            part = load_rows(pointers, k, D, BLOCK_K, EVEN_K).to(ACC) * factor[:, None]
            kept = inside[:, None] & (features < D)[None, :]
            tl.store(
                targets[:, None] + features[None, :],
                round_to(part, hat.dtype.element_ty, INTERPRET),
                mask=kept,
            )


@triton.jit(do_not_specialize=["M", "N"])
def prepare(
    a,  # [G, M, D]
    b,  # [G, N, D]
    bias,  # [G, N]
    a_hat,  # [G, M, D], written
    b_hat,  # [G, N, D], written
    a_inv,  # [G, M], written
    b_inv,  # [G, N], written
    bound,  # [G, BOUNDS], raised
    M,
    N,
    D,
    NORMALIZE: tl.constexpr,
    ROUND: tl.constexpr,  # whether rows are rounded to another dtype or normalised
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``inv = 1 / max(|x|, EPS)`` and ``hat = round(x * inv)`` for the rows of a, then of b.

    The bounds on the logits are raised, too. One program serves BLOCK rows of one group. It reads x
    twice, the second time from cache, and writes hat: (M + N) D elements each.
    """
    blocks_a = tl.cdiv(M, BLOCK)
    blocks = blocks_a + tl.cdiv(N, BLOCK)
    g = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    group = g.to(tl.int64)
    if block < blocks_a:
        _prepare_rows(
            a + group * M * D,
            a_hat + group * M * D,
            a_inv + group * M,
            bound + g * 3,
            block * BLOCK,
            M,
            D,
            NORMALIZE,
            ROUND,
            EVEN_K,
            ACC,
            INTERPRET,
            BLOCK,
            BLOCK_K,
        )
    else:
        first = (block - blocks_a) * BLOCK
        if b is not None:
            _prepare_rows(
                b + group * N * D,
                b_hat + group * N * D,
                b_inv + group * N,
                bound + g * 3 + 1,
                first,
                N,
                D,
                NORMALIZE,
                ROUND,
                EVEN_K,
                ACC,
                INTERPRET,
                BLOCK,
                BLOCK_K,
            )
        if bias is not None:
            columns = first + tl.arange(0, BLOCK)
            size = tl.abs(tl.load(bias + group * N + columns, mask=columns < N, other=0.0))
            removed = tl.load(bias + group * N + columns, mask=columns < N, other=0.0) == float(
                "-inf"
            )
            _raise_bound(bound + g * 3 + 2, tl.max(tl.where(removed, 0.0, _kept(size)), 0))


@triton.jit(do_not_specialize=["M", "N", "positive"])
def prepare_backward(
    g_rows,  # [G, M]
    g_cols,  # [G, N]
    rows,  # [2, G, M] log-sum-exps in two parts
    cols,  # [2, G, N], or None
    pos,  # [G, M], or None
    row_terms,  # [G, M, 2], written
    col_terms,  # [G, N, 2], written
    pull,  # [G, M], written
    unit,  # [1], raised to the largest weight; None: not float16
    M,
    N,
    positive,  # offset of the positive's column
    BLOCK: tl.constexpr,
):
    """Write upstream gradients as terms of the weights of pairs.

    These are ``W_ij = weight_i exp2(s2_ij - level_i) + weight_j exp2(s2_ij - level_j)``. The terms
    of a row or column are its level and its weight. Levels are integral, so that what is rounded
    does not grow with the logits. With a positive the level is ``log2(exp(lse) + exp(pos))``. So
    nothing cancels and no weight underflows when the loss vanishes. ``pull`` is minus the gradient
    of the positive's logit.

    `unit` becomes the largest total weight of a row or column, because float16 panels are stored
    relative to it. It is no less than 2^-60 of an upstream gradient, so that no level's weight
    overflows relative to it. One program serves BLOCK rows of one group. Bytes: O(M + N).
    """
    blocks = tl.cdiv(tl.maximum(M, N), BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = index < M
    row = group * M + index
    plane = (tl.num_programs(0) // blocks).to(tl.int64)
    lse = _load_sum(rows + row, plane * M, inside)
    weight = tl.load(g_rows + row, mask=inside, other=0.0).to(tl.float64)
    column = index
    if pos is not None:
        column = (index + positive) % N
        target = tl.load(pos + row, mask=inside, other=0.0).to(tl.float64)
        weight += _undefined(lse, target)
        if cols is not None:
            weight *= 0.5
            col_lse = _load_sum(cols + group * N + column, plane * N, inside)
            weight += _undefined(col_lse, target)
            col_pull = weight * sigmoid(col_lse - target)
            _store_terms(
                col_terms + group * N * 2, column, inside, _logaddexp(col_lse, target), weight
            )
        row_pull = weight * sigmoid(lse - target)
        total = row_pull
        largest = tl.abs(row_pull)
        if cols is not None:
            total += col_pull
            largest = tl.maximum(largest, tl.abs(col_pull))
        tl.store(pull + row, total, mask=inside)
        lse = _logaddexp(lse, target)
        largest = tl.maximum(largest, tl.abs(weight) * TINY)
    else:
        largest = tl.abs(weight)
        if cols is not None:
            inside_column = column < N
            col_lse = _load_sum(cols + group * N + column, plane * N, inside_column)
            col_weight = tl.load(g_cols + group * N + column, mask=inside_column, other=0.0).to(
                tl.float64
            )
            largest = tl.maximum(largest, tl.abs(col_weight))
            _store_terms(col_terms + group * N * 2, column, inside_column, col_lse, col_weight)
    _store_terms(row_terms + group * M * 2, index, inside, lse, weight)
    if unit is not None:
        finite_size = tl.where(largest < float("inf"), largest, 0.0)
        _raise_bound(
            unit, tl.max(tl.where(finite_size > 0.0, tl.maximum(finite_size, 1e-30), 0.0), 0)
        )


@triton.jit
def _undefined(
    lse,  # [BLOCK]
    pos,  # [BLOCK]
):
    """NaN where cross entropy is NaN, at an infinite positive or candidate, and 0 elsewhere."""
    return 0.0 * (pos + tl.maximum(lse, 0.0))


@triton.jit
def _load_sum(
    lse,  # pointers [BLOCK]
    plane,  # from the first part to the second
    inside,  # [BLOCK]
):
    """A log-sum-exp ``[BLOCK]`` from its two parts, in float64."""
    lost = tl.load(lse + plane, mask=inside, other=0.0).to(tl.float64)
    return tl.load(lse, mask=inside, other=0.0).to(tl.float64) + lost


@triton.jit
def _logaddexp(
    x,  # [BLOCK]
    y,  # [BLOCK]
):
    """``log(exp(x) + exp(y))``, which is ``[BLOCK]``."""
    top = tl.maximum(x, y)
    return tl.where(tl.abs(top) == float("inf"), top, top + log1p(tl.exp(-tl.abs(x - y))))


@triton.jit
def _store_terms(
    terms,  # [count, 2], written
    index,  # [BLOCK]
    inside,  # [BLOCK]
    lse,  # [BLOCK]
    weight,  # [BLOCK]
):
    """Store the level and the weight of rows or columns.

    A row without candidates has no gradient: its level and weight are 0. The weight is NaN where
    the upstream gradient is not finite.
    """
    empty = lse == float("-inf")
    exact = tl.where(empty, 0.0, lse * LOG2E)
    level = tl.floor(exact + 0.5).to(terms.dtype.element_ty)
    rest = level.to(tl.float64) - exact
    # Beyond 2^44 two floats no longer hold how far a log-sum-exp is from its largest logit.
    limit = float("inf") if terms.dtype.element_ty == tl.float64 else 17592186044416.0
    weight *= tl.exp2(tl.where(tl.abs(level) < limit, rest, 0.0))
    tl.store(terms + 2 * index, level, mask=inside)
    tl.store(terms + 2 * index + 1, tl.where(empty, 0.0 * weight, weight), mask=inside)
