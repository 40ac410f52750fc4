"""`finish_forward`, `finish_weighted`: slots merged in a fixed order, positives, losses. `finish_backward`: gradients of the inputs."""

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
    slots,
    planes,
    slot_stride,
    index,
    inside,
    count,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """(maximum, sum) over `count` slots, SLOTS at a time."""
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
def _log_sum(maximum, total):
    """Natural log of sum exp from base-2 parts, in float64; -inf for an empty sum."""
    total = total.to(tl.float64)
    value = finite(maximum).to(tl.float64) * LN2 + tl.log(tl.where(total == 0.0, 1.0, total))
    return tl.where(total == 0.0, NEG_INF, value)


@triton.jit
def _store_sum(target, plane, lse, inside, ACC: tl.constexpr):
    """lse rounded and, a plane on, what rounding lost where it is finite."""
    rounded = lse.to(ACC)
    tl.store(target, rounded, mask=inside)
    lost = (lse - rounded.to(tl.float64)).to(ACC)
    tl.store(target + plane, tl.where(tl.abs(rounded) < float("inf"), lost, 0.0), mask=inside)


@triton.jit
def _loss(lse, pos, ACC: tl.constexpr):
    undefined = 0.0 * (
        pos + tl.maximum(lse, 0.0)
    )  # NaN where cross entropy is: an infinite positive or candidate
    return softplus((lse - pos).to(ACC)) + undefined.to(ACC)


@triton.jit(do_not_specialize=["M", "N", "positive", "super_rows"])
def finish_forward(
    slots, a, b, bias, scale, rows, cols, pos, loss, row_max, col_max, M, N, positive, super_rows,
    D: tl.constexpr, SYMMETRIC: tl.constexpr, EVEN_K: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of rows (and columns) from pair_reduce's slots; the positives' logits and ``softplus(lse - pos)``; maxima.

    One program per BLOCK rows of one group, with the columns of the same index, or with a positive those of their positives.
    Bytes: 2 (M + N) S slots; with a positive 2 M D elements.
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
        target = (
            tl.fma(target, tl.load(scale) * LOG2E, shift).to(tl.float64) * LN2
        )  # scaled as in pair_reduce
        tl.store(pos + group * M + index, target, mask=inside)
        value = _loss(lse, target, ACC)
        if cols is not None:
            value = 0.5 * (value + _loss(col_lse, target, ACC))
        tl.store(loss + group * M + index, value, mask=inside)


@triton.jit(do_not_specialize=["M", "splits"])
def finish_weighted(
    slots, partial, rows, row_max, mean, M, D, splits, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Log-sum-exp, maximum and softmax-weighted mean ``[G, M, D]`` from fused_rows' partial results.

    One program per BLOCK rows of one group. Bytes: 4 (splits + 1) M D.
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
def _pulled(gradient, near, far, near_pull, far_pull, factor, k, D, EVEN_K: tl.constexpr, ACC: tl.constexpr,
            NEAR: tl.constexpr, FAR: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Features k.. of the rows' unscaled gradient, positives included."""
    total = load_rows(gradient, k, D, BLOCK_K, EVEN_K) * factor
    if NEAR:
        total -= near_pull[:, None] * load_rows(near, k, D, BLOCK_K, EVEN_K).to(ACC)
    if FAR:
        total -= far_pull[:, None] * load_rows(far, k, D, BLOCK_K, EVEN_K).to(ACC)
    return total


@triton.jit(do_not_specialize=["X", "Y", "positive"])
def finish_backward(
    gradient, x, y, given, inv, pull, scale, unit, dx, radial, X, Y, D, positive,
    NEAR: tl.constexpr, FAR: tl.constexpr, SHARE: tl.constexpr, EVEN_K: tl.constexpr, ACC: tl.constexpr,
    INTERPRET: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, HALF_RANGE: tl.constexpr,
):  # fmt: skip
    """``dx = scale (G - <u, G> u) inv`` with ``u = given * inv`` in the dtype of dx; ``radial``: this block's ``SHARE * sum <x, G>``, for
    the gradient of the scale.

    G is `gradient` (a product with W, fp32, unscaled) less the positives' pull: NEAR, x are rows with positives
    ``y[(i + positive) % Y]``; FAR, x are the positives of ``y[(j - positive) % X]``; both for one set. Rows below the norm floor are
    not projected. One program per BLOCK rows of one group. Bytes: (8 + 4..8) X D.
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
