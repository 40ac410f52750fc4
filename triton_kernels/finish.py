"""What comes after the tiles, forward and backward.

`finish_forward` and `finish_weighted` merge slots in a fixed order. The first also computes
positives and losses. `finish_backward` computes the gradients of the inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile_math import (
    LN2,
    LOG2E,
    NEG_INF,
    finite,
    fold,
    load_rows,
    round_to,
    row_pointers,
    softplus,
)


@triton.jit
def _merge(
    slots,  # [count, ...] sums, `planes` on the maxima
    planes,  # from the sums to the maxima
    slot_stride,  # from one slot to the next
    index,  # [BLOCK]
    inside,  # [BLOCK]
    count,  # slots
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,  # slots merged at a time
):
    """The maximum and the sum ``[BLOCK]`` over `count` slots, SLOTS at a time."""
    maximum = tl.full((BLOCK,), NEG_INF, ACC)
    total = tl.zeros((BLOCK,), ACC)
    for first in range(0, count, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        pointers = slots + slot.to(tl.int64)[:, None] * slot_stride + index[None, :]
        kept = (slot < count)[:, None] & inside[None, :]
        sums = tl.load(pointers, mask=kept, other=0.0)
        maxima = tl.load(pointers + planes, mask=kept, other=NEG_INF)
        top = tl.max(maxima, 0)
        maximum, total = fold(
            maximum, total, top, tl.sum(sums * tl.exp2(maxima - finite(top)[None, :]), 0)
        )
    return maximum, total


@triton.jit
def _log_sum(
    maximum,  # [BLOCK]
    total,  # [BLOCK]
):
    """The natural log-sum-exp from base-2 parts, in float64; -inf for an empty sum."""
    total = total.to(tl.float64)
    value = finite(maximum).to(tl.float64) * LN2 + tl.log(tl.where(total == 0.0, 1.0, total))
    return tl.where(total == 0.0, NEG_INF, value)


@triton.jit
def _store_sum(
    target,  # pointers [BLOCK]
    plane,  # from the first part to the second
    lse,  # [BLOCK]
    inside,  # [BLOCK]
    ACC: tl.constexpr,
):
    """Store lse rounded and, a plane on, what rounding lost where it is finite."""
    rounded = lse.to(ACC)
    tl.store(target, rounded, mask=inside)
    lost = (lse - rounded.to(tl.float64)).to(ACC)
    tl.store(target + plane, tl.where(tl.abs(rounded) < float("inf"), lost, 0.0), mask=inside)


@triton.jit
def _loss(
    lse,  # [BLOCK]
    pos,  # [BLOCK]
    ACC: tl.constexpr,
):
    """softplus(lse - pos), NaN where cross entropy is: at an infinite positive or candidate."""
    undefined = 0.0 * (pos + tl.maximum(lse, 0.0))
    return softplus((lse - pos).to(ACC)) + undefined.to(ACC)


@triton.jit(do_not_specialize=["M", "N", "positive", "super_rows"])
def finish_forward(
    slots,  # [plan.slot_count(...)]
    a,  # [G, M, D]
    b,  # [G, N, D]
    bias,  # [G, N], or None
    scale,  # []
    rows,  # [2, G, M], written
    cols,  # [2, G, N], or None
    pos,  # [G, M], or None
    loss,  # [G, M], or None
    row_max,  # [G, M], or None
    col_max,  # [G, N], or None
    M,
    N,
    positive,  # offset of the positive's column
    super_rows,
    D: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLOTS: tl.constexpr,  # slots merged at a time
):
    """Log-sum-exps of rows, and of columns, from pair_reduce's slots, and their maxima.

    With a positive, its logit and ``softplus(lse - pos)`` follow. One program serves BLOCK rows of
    one group. It also serves the columns of the same index, or with a positive those of the
    positives. Bytes: 2 (M + N) S slots, and with a positive 2 M D elements.
    """
    blocks = tl.cdiv(tl.maximum(M, N), BLOCK)
    g = tl.program_id(0) // blocks
    G = tl.num_programs(0) // blocks
    group = g.to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    index = first + tl.arange(0, BLOCK)
    inside = index < M
    row_slots = tl.cdiv(N, super_rows) + (1 if SYMMETRIC else 0)
    stride = G.to(tl.int64) * M
    planes = stride * row_slots
    maximum, total = _merge(
        slots + group * M, planes, stride, index, inside, row_slots, ACC, BLOCK, SLOTS
    )
    lse = _log_sum(maximum, total)
    _store_sum(rows + group * M + index, stride, lse, inside, ACC)
    if row_max is not None:
        tl.store(row_max + group * M + index, maximum * LN2, mask=inside)

    column = index
    if pos is not None:
        column = (index + positive) % N
    if cols is not None:
        known = inside if pos is not None else index < N
        col_slots = tl.cdiv(M, super_rows)
        col_stride = G.to(tl.int64) * N
        col_base = slots + 2 * planes + group * N
        maximum, total = _merge(
            col_base,
            col_stride * col_slots,
            col_stride,
            column,
            known,
            col_slots,
            ACC,
            BLOCK,
            SLOTS,
        )
        col_lse = _log_sum(maximum, total)
        _store_sum(cols + group * N + column, col_stride, col_lse, known, ACC)
        if col_max is not None:
            tl.store(col_max + group * N + column, maximum * LN2, mask=known)

    if pos is not None:
        x_rows = row_pointers(a + group * M * D, first, BLOCK, M, D)
        y_rows = b + group * N * D + column.to(tl.int64) * D
        target = tl.zeros((BLOCK,), ACC)
        for k in range(0, D, BLOCK_K):
            x = load_rows(x_rows, k, D, BLOCK_K, EVEN_K).to(ACC)
            target += tl.sum(x * load_rows(y_rows, k, D, BLOCK_K, EVEN_K).to(ACC), 1)
        shift = tl.zeros((BLOCK,), ACC)
        if bias is not None:
            shift = tl.load(bias + group * N + column, mask=inside, other=0.0) * LOG2E
        # The positive's logit is scaled as in pair_reduce.
        target = tl.fma(target, tl.load(scale) * LOG2E, shift).to(tl.float64) * LN2
        tl.store(pos + group * M + index, target, mask=inside)
        value = _loss(lse, target, ACC)
        if cols is not None:
            value = 0.5 * (value + _loss(col_lse, target, ACC))
        tl.store(loss + group * M + index, value, mask=inside)


@triton.jit(do_not_specialize=["M", "splits"])
def finish_weighted(
    slots,  # [2, splits, G, M]
    partial,  # [splits, G, M, D]
    rows,  # [2, G, M], written
    row_max,  # [G, M], or None
    mean,  # [G, M, D], written
    M,
    D,
    splits,
    ACC: tl.constexpr,  # the dtype of sums
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Log-sum-exp, maximum and softmax-weighted mean from fused_rows' partial results.

    One program serves BLOCK rows of one group. Bytes: 4 (splits + 1) M D.
    """
    blocks = tl.cdiv(M, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    stride = (tl.num_programs(0) // blocks).to(tl.int64) * M
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = index < M
    slots += group * M
    maximum = tl.full((BLOCK,), NEG_INF, ACC)
    for s in range(0, splits):
        maximum = tl.maximum(
            maximum, tl.load(slots + (splits + s) * stride + index, mask=inside, other=NEG_INF)
        )
    shift = finite(maximum)
    total = tl.zeros((BLOCK,), ACC)
    for s in range(0, splits):
        part = tl.load(slots + (splits + s) * stride + index, mask=inside, other=NEG_INF)
        total += tl.load(slots + s * stride + index, mask=inside, other=0.0) * tl.exp2(part - shift)
    _store_sum(rows + group * M + index, stride, _log_sum(maximum, total), inside, ACC)
    if row_max is not None:
        tl.store(row_max + group * M + index, maximum * LN2, mask=inside)
    for k in range(0, D, BLOCK_K):
        features = k + tl.arange(0, BLOCK_K)
        kept = inside[:, None] & (features < D)[None, :]
        value = tl.zeros((BLOCK, BLOCK_K), ACC)
        for s in range(0, splits):
            part = tl.load(slots + (splits + s) * stride + index, mask=inside, other=NEG_INF)
            place = (s * stride + group * M + index) * D
            value += (
                tl.load(partial + place[:, None] + features[None, :], mask=kept, other=0.0)
                * tl.exp2(part - shift)[:, None]
            )
        value = value / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(mean + ((group * M + index) * D)[:, None] + features[None, :], value, mask=kept)


@triton.jit
def _pulled(
    gradient,  # pointers [BLOCK]
    near,  # pointers [BLOCK]
    far,  # pointers [BLOCK]
    near_pull,  # [BLOCK]
    far_pull,  # [BLOCK]
    factor,  # [BLOCK, 1]
    k,  # the first feature
    D,
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    ACC: tl.constexpr,  # the dtype of sums
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The rows' unscaled gradient ``[BLOCK, BLOCK_K]`` from feature k on, positives included."""
    total = load_rows(gradient, k, D, BLOCK_K, EVEN_K) * factor
    if NEAR:
        total -= near_pull[:, None] * load_rows(near, k, D, BLOCK_K, EVEN_K).to(ACC)
    if FAR:
        total -= far_pull[:, None] * load_rows(far, k, D, BLOCK_K, EVEN_K).to(ACC)
    return total


@triton.jit(do_not_specialize=["X", "Y", "positive"])
def finish_backward(
    gradient,  # [G, X, D]
    x,  # [G, X, D]
    y,  # [G, Y, D]
    given,  # [G, X, D]
    inv,  # [G, X], or None
    pull,  # [G, X where NEAR, Y where FAR], or None
    scale,  # []
    unit,  # [1], the largest weight; None: not float16
    dx,  # [G, X, D], or None
    radial,  # [programs], or None
    X,
    Y,
    D,
    positive,  # offset of the positive's column
    NEAR: tl.constexpr,
    FAR: tl.constexpr,
    SHARE: tl.constexpr,
    EVEN_K: tl.constexpr,  # whether BLOCK_K divides D
    ACC: tl.constexpr,  # the dtype of sums
    INTERPRET: tl.constexpr,  # whether Triton's interpreter runs this
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HALF_RANGE: tl.constexpr,
):
    """``dx = scale (G - <u, G> u) inv`` with ``u = given * inv``, in the dtype of dx.

    For the gradient of the scale, ``radial`` holds each block's ``SHARE * sum <x, G>``. G is
    `gradient`, an unscaled product with W, less the positives' pull. With NEAR, x are rows with
    positives ``y[(i + positive) % Y]``. With FAR, x are the positives of ``y[(j - positive) % X]``.
    One set has both. Rows below the norm floor are not projected. One program serves BLOCK rows of
    one group. Bytes: 8 X D, and 4 to 8 X D more by the dtypes of x and dx.
    """
    blocks = tl.cdiv(X, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    index = first + tl.arange(0, BLOCK)
    inside = index < X
    x_rows = row_pointers(x + group * X * D, first, BLOCK, X, D)
    gradient_rows = row_pointers(gradient + group * X * D, first, BLOCK, X, D)
    near = x_rows
    far = x_rows
    near_pull = tl.zeros((BLOCK,), ACC)
    far_pull = tl.zeros((BLOCK,), ACC)
    if NEAR:
        partner = (index + positive) % Y
        near = y + (group * Y + partner) * D
        near_pull = tl.load(pull + group * X + index, mask=inside, other=0.0)
    if FAR:
        anchor = (index + X - positive) % X
        far = y + (group * Y + tl.minimum(anchor, Y - 1)) * D
        far_pull = tl.load(pull + group * Y + anchor, mask=inside & (anchor < Y), other=0.0)
    factor = tl.full((BLOCK,), 1.0, ACC)[:, None]
    if unit is not None:
        factor *= tl.load(unit) / HALF_RANGE
    length = tl.full((BLOCK,), 1.0, ACC)
    if inv is not None:
        length = tl.load(inv + group * X + index, mask=inside, other=1.0)
        given_rows = row_pointers(given + group * X * D, first, BLOCK, X, D)
    inner = tl.zeros((BLOCK,), ACC)
    tangent = tl.zeros((BLOCK,), ACC)
    if (inv is not None) or (radial is not None):
        for k in range(0, D, BLOCK_K):
            total = _pulled(
                gradient_rows,
                near,
                far,
                near_pull,
                far_pull,
                factor,
                k,
                D,
                EVEN_K,
                ACC,
                NEAR,
                FAR,
                BLOCK_K,
            )
            if radial is not None:
                inner += tl.sum(load_rows(x_rows, k, D, BLOCK_K, EVEN_K).to(ACC) * total, 1)
            if inv is not None:
                u = load_rows(given_rows, k, D, BLOCK_K, EVEN_K).to(ACC) * length[:, None]
                tangent += tl.sum(u * total, 1)
    if radial is not None:
        tl.store(radial + tl.program_id(0), SHARE * tl.sum(tl.where(inside, inner, 0.0), 0))
    if dx is not None:
        tangent = tl.where(length < 0.99999e12, tangent, 0.0)
        outer = length * tl.load(scale)
        targets = row_pointers(dx + group * X * D, first, BLOCK, X, D)
        for k in range(0, D, BLOCK_K):
            features = k + tl.arange(0, BLOCK_K)
            total = _pulled(
                gradient_rows,
                near,
                far,
                near_pull,
                far_pull,
                factor,
                k,
                D,
                EVEN_K,
                ACC,
                NEAR,
                FAR,
                BLOCK_K,
            )
            if inv is not None:
                u = load_rows(given_rows, k, D, BLOCK_K, EVEN_K).to(ACC) * length[:, None]
                total -= tangent[:, None] * u
            value = total * outer[:, None]
            kept = inside[:, None] & (features < D)[None, :]
            tl.store(
                targets[:, None] + features[None, :],
                round_to(value, dx.dtype.element_ty, INTERPRET),
                mask=kept,
            )
