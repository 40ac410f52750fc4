"""The sigmoid family's two functions: fused_contrastive/sigmoid_ops.py has their contract. One set is two sets that are the same."""

from __future__ import annotations

import torch

from ..backends.panels import panel_products
from ..problem import KEYED
from . import configs
from .gradients import panels
from .launch import accumulation_type, ceil_div, is_interpreted, launch, precision
from .pair_weight import HALF_RANGE
from .prepare import BOUNDS
from .sigmoid_kernels import sigmoid_finish, sigmoid_reduce, sigmoid_terms, sigmoid_weight
from .similarity import (
    FEATURES,
    ROWS,
    finish_set,
    keys_of,
    prepare_sets,
    present,
    resolve,
    super_tile,
)


def sigmoid_forward(
    a, b, scale, row_bias, key_a, key_b, kind, offset, stride, positive, sign, normalize, extrema, dtype
):  # fmt: skip
    """See sigmoid_ops.py."""
    G, M, D = a.shape
    one_set = b is None
    N = M if one_set else b.shape[1]
    kind, offset, stride = resolve(kind, offset, stride, M, N)
    a = a.contiguous()
    b = a if one_set else b.contiguous()
    row_bias = None if row_bias is None else row_bias.contiguous()
    key_a, key_b = keys_of(kind, key_a, key_b, one_set)

    def empty(present, *shape, dtype=scale.dtype):
        return torch.empty(shape if present else (0,), dtype=dtype, device=a.device)

    rounded = normalize or a.dtype != dtype
    a_hat, b_hat = (
        empty(rounded, G, M, D, dtype=dtype),
        empty(rounded and not one_set, G, N, D, dtype=dtype),
    )
    a_inv, b_inv = empty(normalize, G, M), empty(normalize and not one_set, G, N)
    if rounded:
        bound = torch.zeros(G * BOUNDS, dtype=torch.float32, device=a.device)
        prepare_sets(
            a,
            None if one_set else b,
            None,
            a_hat,
            b_hat,
            a_inv,
            b_inv,
            bound,
            normalize,
            rounded,
            dtype,
        )
    x = a_hat if rounded else a
    y = x if one_set else (b_hat if rounded else b)
    rows, pos, row_max = empty(True, G, M), empty(positive >= 0, G, M), empty(extrema, G, M)
    slots, count = _reduce(x, y, row_bias, key_a, key_b, scale, kind, offset, stride, sign, extrema)
    launch(
        sigmoid_finish,
        G * ceil_div(M, ROWS),
        slots, x, y, row_bias, scale, rows, present(pos), present(row_max), M, N, max(positive, 0) % N, count,
        D=D, SIGN=sign, EVEN_K=D % FEATURES == 0, ACC=accumulation_type(x.dtype), BLOCK=ROWS, BLOCK_K=FEATURES, SLOTS=32,
    )  # fmt: skip
    return rows, pos, row_max, a_hat, b_hat, a_inv, b_inv


def _reduce(x, y, row_bias, key_a, key_b, scale, kind, offset, stride, sign, extrema):
    """``(slots, number of super-tiles of columns)`` of `sigmoid_reduce`."""
    (G, M, D), N = x.shape, y.shape[1]
    arch = configs.architecture(x.device)

    def start(config: configs.Config):
        super_rows = super_tile(M, N, False, config)
        supers_m, supers_n = ceil_div(M, super_rows), ceil_div(N, super_rows)
        slots = torch.empty((1 + extrema, supers_n, G, M), dtype=scale.dtype, device=x.device)
        launch(
            sigmoid_reduce,
            G * supers_m * supers_n,
            x, y, row_bias, key_a, key_b, scale, slots, M, N, D, offset, stride, super_rows,
            KIND=kind, SIGN=sign, EXTREMA=extrema, RESIDENT=D <= config.block_k, EVEN_K=D % config.block_k == 0,
            PRECISION=precision(x.dtype, arch), ACC=accumulation_type(x.dtype), INTERPRET=is_interpreted(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        return slots, supers_n

    return configs.run("sigmoid_reduce", arch, x.dtype, D, M, kind in KEYED, start)


def sigmoid_backward(
    g_rows, a, b, scale, row_bias, key_a, key_b, pos, a_hat, b_hat, a_inv, b_inv,
    kind, offset, stride, positive, sign, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See sigmoid_ops.py."""
    one_set = b is None
    x = a_hat if a_hat.numel() else a.contiguous()
    y = x if one_set else (b_hat if b_hat.numel() else b.contiguous())
    (G, M, _), N = x.shape, y.shape[1]
    candidates = resolve(kind, offset, stride, M, N)
    keys = keys_of(candidates[0], key_a, key_b, one_set)
    pos, positive = present(pos), positive % N if positive >= 0 else 0
    need_b = need_b and not one_set
    from_a = need_a or (need_scale and not need_b)

    row_terms = scale.new_empty(G, M, 2)
    pull = None if pos is None else torch.empty_like(pos)
    unit = scale.new_zeros(1) if x.dtype == torch.float16 else None
    launch(
        sigmoid_terms,
        G * ceil_div(M, 256),
        g_rows.contiguous(), None if row_bias is None else row_bias.contiguous(), pos, row_terms, pull, unit, M,
        SIGN=sign, BLOCK=256,
    )  # fmt: skip
    sums = scale.new_zeros(G, M) if need_bias else None

    def panel(g, i, j, workspace):
        kind, offset, stride = candidates
        shifted = (
            offset + i.start - j.start if kind in ("not_self", "not_pair", "same_key") else offset
        )
        key_rows, key_columns = (
            None if key is None else key[g, part] for key, part in zip(keys, (i, j), strict=True)
        )
        w, partial = _panel_of_weights(
            x[g, i], y[g, j], key_rows, key_columns, scale, row_terms[g, i], unit, kind, shifted, stride, sign,
            need_bias, workspace,
        )  # fmt: skip
        if need_bias:
            sums[g, i] += partial.sum(0)
        return w

    plan = panels(G, M, N, False, x.element_size())
    sum_a, sum_b = panel_products(x, y, plan, False, from_a, need_b or (one_set and from_a), panel)
    if one_set and from_a:
        sum_a += sum_b
    da, db, radial = a.new_empty(0), (a if one_set else b).new_empty(0), None
    if from_a:
        da, radial = finish_set(
            sum_a, x, y, a, a_inv, pull, scale, unit, positive, True, one_set, 0.5 if one_set else 1.0,
            need_a, need_scale,
        )  # fmt: skip
    if need_b:
        db, other = finish_set(
            sum_b,
            y,
            x,
            b,
            b_inv,
            pull,
            scale,
            unit,
            positive,
            False,
            True,
            1.0,
            True,
            need_scale and not from_a,
        )
        radial = other if radial is None else radial
    if need_bias:
        sums = sums if unit is None else sums * (unit / HALF_RANGE.value)
        sums = sums if pull is None else sums - pull
    none = scale.new_empty(0)
    return da, db, radial.sum() if need_scale else none, sums if need_bias else none


def _panel_of_weights(
    x, y, key_a, key_b, scale, row_terms, unit, kind, offset, stride, sign, need_sums, workspace
):
    """One panel ``[G, m, n]`` of W in `workspace`, and its row sums by tile. Operands are contiguous, or rows of a single group."""
    (G, M, D), N = x.shape, y.shape[1]
    arch = configs.architecture(x.device)
    ld = ceil_div(N, 16) * 16
    panel = workspace[: G * M * ld].view(G, M, ld)
    if kind == "not_pair":
        offset %= stride

    def start(config: configs.Config):
        sums = None
        if need_sums:
            sums = torch.empty(
                (ceil_div(N, config.block_n), G, M), dtype=scale.dtype, device=x.device
            )
        launch(
            sigmoid_weight,
            G * ceil_div(M, config.block_m) * ceil_div(N, config.block_n),
            x, y, key_a, key_b, scale, row_terms, unit, sums, panel, M, N, D, offset, stride,
            KIND=kind, SIGN=sign, EVEN_K=D % config.block_k == 0, PRECISION=precision(x.dtype, arch),
            ACC=accumulation_type(x.dtype), INTERPRET=is_interpreted(), BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            BLOCK_K=config.block_k, GROUP=8, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        return sums

    sums = configs.run("sigmoid_weight", arch, x.dtype, D, M, key_a is not None, start)
    return panel[:, :, :N], sums
