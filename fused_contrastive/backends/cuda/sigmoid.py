"""The sigmoid family on the native CUDA backend: contract in sigmoid_ops.py, kernels in csrc/cuda/sigmoid*. One set is two sets that are the same.

Every output and workspace is allocated here. Below one panel: 2 kernels forward (sigmoid_reduce, sigmoid_finish; a prepare where rows are
normalised or rounded), 4 and two products backward (sigmoid_terms, sigmoid_weight, finish_backward for either set); the scale's gradient takes
2 more (a sum and its rounding), that of the rows' bias 4 (two fills, the sum of the tiles' sums, the positives), float16 one (a fill).
No host synchronisation. Workspace: WORKSPACE bytes of weights, 4 bytes per row and tile of 128 columns.
"""

from __future__ import annotations

import torch

from ...problem import KINDS
from ..panels import panel_products
from ..tiled import plan as tiling
from ..tiled.plan import ceil_div, resolve
from ._tiles import (
    HALF_RANGE,
    TILE,
    TILE_F64,
    as_upstream,
    finish_set,
    float32_products,
    keys_of,
    panel_size,
    super_unit,
)


def sigmoid_forward(
    operators, a, b, scale, row_bias, key_a, key_b, kind, offset, stride, positive, sign, normalize, extrema, dtype
):  # fmt: skip
    """See sigmoid_ops.py."""
    G, M, D = a.shape
    one_set = b is None
    N = M if one_set else b.shape[1]
    kind, offset, stride = resolve(kind, offset, stride, M, N)
    a, b = a.contiguous(), None if one_set else b.contiguous()
    row_bias = None if row_bias is None else row_bias.contiguous()
    keys = keys_of(kind, key_a, key_b, one_set)

    def empty(present, *shape, dtype=scale.dtype):
        return torch.empty(shape if present else (0,), dtype=dtype, device=a.device)

    rounded = normalize or a.dtype != dtype
    rounded_b = not one_set and (normalize or b.dtype != dtype)
    a_hat, b_hat = empty(rounded, G, M, D, dtype=dtype), empty(rounded_b, G, N, D, dtype=dtype)
    a_inv, b_inv = empty(normalize, G, M), empty(normalize and not one_set, G, N)
    if rounded or rounded_b:
        like = empty(False, dtype=dtype)
        bound = like if normalize else torch.zeros((G, 3), dtype=torch.float32, device=a.device)
        operators.prepare(a, b, None, a_hat, b_hat, a_inv, b_inv, bound, like, normalize)
    x = a_hat if rounded else a
    y = x if one_set else (b_hat if rounded_b else b)

    rows, pos, row_max = empty(True, G, M), empty(positive >= 0, G, M), empty(extrema, G, M)
    super_rows = tiling.super_tile(M, N, False, super_unit(x))
    supers = ceil_div(N, super_rows)
    slots = empty(True, (1 + extrema) * supers * G * M)
    operators.sigmoid_reduce(
        x, y, row_bias, *keys, scale, slots, KINDS.index(kind), offset, stride, super_rows, sign, extrema,
        float32_products(x),
    )  # fmt: skip
    operators.sigmoid_finish(
        slots, x, y, row_bias, scale, rows, pos, row_max, max(positive, 0) % N, supers, sign
    )
    return rows, pos, row_max, a_hat, b_hat, a_inv, b_inv


def sigmoid_backward(
    operators, g_rows, a, b, scale, row_bias, key_a, key_b, pos, a_hat, b_hat, a_inv, b_inv,
    kind, offset, stride, positive, sign, normalize, dtype, need_a, need_b, need_scale, need_bias,
):  # fmt: skip
    """See sigmoid_ops.py."""
    one_set = b is None
    x = a_hat if a_hat.numel() else a.contiguous()
    y = x if one_set else (b_hat if b_hat.numel() else b.contiguous())
    (G, M, _), N = x.shape, y.shape[1]
    kind, offset, stride = resolve(kind, offset, stride, M, N)
    key_a, key_b = keys_of(kind, key_a, key_b, one_set)
    positive = positive % N if positive >= 0 else 0
    need_b = need_b and not one_set
    from_a = need_a or (need_scale and not need_b)
    none = scale.new_empty(0)

    row_terms, pull = scale.new_empty(G, M, 2), torch.empty_like(pos)
    unit = scale.new_zeros(1) if x.dtype == torch.float16 else none
    operators.sigmoid_terms(
        as_upstream(g_rows),
        None if row_bias is None else as_upstream(row_bias),
        pos,
        row_terms,
        pull,
        unit,
        sign,
    )
    float32, plane = float32_products(x), TILE_F64 if x.dtype == torch.float64 else TILE
    sums = scale.new_zeros(G, M) if need_bias else none

    def panel(g, i, j, workspace):
        shifted = (
            offset + i.start - j.start if kind in ("not_self", "not_pair", "same_key") else offset
        )
        panel = workspace[: panel_size(g, i, j)].view(g.stop - g.start, i.stop - i.start, -1)
        groups, height, _ = panel.shape
        planes = (
            scale.new_zeros(ceil_div(j.stop - j.start, plane), groups, height)
            if need_bias
            else none
        )
        operators.sigmoid_weight(
            x[g, i], y[g, j], None if key_a is None else key_a[g, i], None if key_b is None else key_b[g, j], scale, row_terms[g, i],
            unit, planes, panel, KINDS.index(kind), shifted % stride if kind == "not_pair" else shifted, stride, sign, float32,
        )  # fmt: skip
        if need_bias:
            sums[g, i] += planes.sum(0)
        return panel[:, :, : j.stop - j.start]

    plan = tiling.panels(G, M, N, False, tiling.WORKSPACE // x.element_size())
    sum_a, sum_b = panel_products(x, y, plan, False, from_a, need_b or (one_set and from_a), panel)
    if one_set and from_a:
        sum_a += sum_b
    shared = {"pull": pull, "scale": scale, "unit": unit, "positive": positive}
    da, db, radial = a.new_empty(0), (a if one_set else b).new_empty(0), None
    if from_a:
        da, radial = finish_set(
            operators,
            sum_a,
            x,
            y,
            a,
            a_inv,
            **shared,
            near=True,
            far=one_set,
            need_x=need_a,
            need_scale=need_scale,
        )
    if need_b:
        db, other = finish_set(
            operators, sum_b, y, x, b, b_inv, **shared, near=False, far=True, need_x=True,
            need_scale=need_scale and not from_a,
        )  # fmt: skip
        radial = other if radial is None else radial
    if need_bias:
        sums = sums * (unit / HALF_RANGE) if unit.numel() else sums
        sums = sums - pull if pull.numel() else sums
    return da, db, radial.sum().to(scale.dtype) if need_scale else none, sums
