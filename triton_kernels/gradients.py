"""Weighted sums of embeddings over a bounded workspace: panels of W from `pair_weight`, products by the library."""

from __future__ import annotations

import math

import torch

from ..backends.panels import panel_products
from . import configs
from .launch import accumulation_type, ceil_div, is_interpreted, launch, precision
from .pair_weight import pair_weight

WORKSPACE = 256 << 20
"""Bytes of one panel of W."""


def blocks(size: int, most: int) -> list[slice]:
    """[0, size) in equal slices of at most `most`, of a multiple of 256 (16 when small) elements."""
    most = max(most, 16)
    unit = 256 if most >= 1024 else 16
    step = ceil_div(size, ceil_div(size, most // unit * unit))
    step = min(size, ceil_div(step, unit) * unit)
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def panels(G: int, M: int, N: int, symmetric: bool, itemsize: int):
    """``(g, i, j)`` slices of the panels: several groups at once, or parts of one; `symmetric`: only j >= i."""
    capacity = WORKSPACE // itemsize
    whole = M * ceil_div(N, 16) * 16
    if whole <= capacity:
        step = min(G, capacity // whole)
        return [(slice(g, min(g + step, G)), slice(0, M), slice(0, N)) for g in range(0, G, step)]
    square = math.isqrt(capacity)
    if symmetric:
        parts = blocks(N, square)
        pairs = [(i, j) for n, i in enumerate(parts) for j in parts[n:]]
    else:
        wide = min(N, max(square, capacity // M))
        column_parts = blocks(N, wide)
        row_parts = blocks(M, capacity // (ceil_div(column_parts[0].stop, 16) * 16))
        pairs = [(i, j) for i in row_parts for j in column_parts]
    return [(slice(g, g + 1), i, j) for g in range(G) for i, j in pairs]


def weighted_sums(
    x, y, bias, key_a, key_b, scale, row_terms, col_terms, unit, kind, offset, stride,
    symmetric: bool, need_a: bool, need_b: bool, need_bias: bool,
):  # fmt: skip
    """``W y [G, M, D]``, ``W^T x [G, N, D]`` and the column sums of W ``[G, N]``, each None unless needed.

    W is `pair_weight`'s; with `unit` (float16) the results are multiples of it. `symmetric`: W is symmetric, ``col_terms`` are the
    row terms and half of it is computed; one set without symmetry gets ``(W + W^T) x`` as the first result.
    """
    sum_bias = (
        torch.zeros((x.shape[0], y.shape[1]), dtype=scale.dtype, device=x.device)
        if need_bias
        else None
    )

    def panel(g, i, j, workspace):
        shifted = (
            offset + i.start - j.start if kind in ("not_self", "not_pair", "same_key") else offset
        )
        w = panel_of_weights(
            x[g, i], y[g, j], bias if bias is None else bias[g, j], key_a if key_a is None else key_a[g, i],
            key_b if key_b is None else key_b[g, j], scale, row_terms[g, i],
            col_terms if col_terms is None else col_terms[g, j], unit, kind, shifted, stride, symmetric and i == j, workspace,
        )  # fmt: skip
        if need_bias:
            sum_bias[g, j] += w.sum(1, dtype=scale.dtype)
        return w

    plan = panels(*x.shape[:2], y.shape[1], symmetric, x.element_size())
    return *panel_products(x, y, plan, symmetric, need_a, need_b, panel), sum_bias


def panel_of_weights(
    x, y, bias, key_a, key_b, scale, row_terms, col_terms, unit, kind, offset, stride, mirror, workspace
):  # fmt: skip
    """One panel ``[G, m, n]`` of W in `workspace`. Operands are contiguous, or rows of a single group."""
    (G, M, D), N = x.shape, y.shape[1]
    arch = configs.architecture(x.device)
    ld = ceil_div(N, 16) * 16
    panel = workspace[: G * M * ld].view(G, M, ld)
    if kind == "not_pair":
        offset %= stride

    def start(config: configs.Config) -> None:
        launch(
            pair_weight,
            G * ceil_div(M, config.block_m) * ceil_div(N, config.block_n),
            x, y, bias, key_a, key_b, scale, row_terms, col_terms, unit, panel, M, N, D, offset, stride,
            KIND=kind, MIRROR=mirror, COLUMNS=col_terms is not None, EVEN_K=D % config.block_k == 0,
            PRECISION=precision(x.dtype, arch), ACC=accumulation_type(x.dtype), INTERPRET=is_interpreted(),
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUP=8,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    configs.run("pair_weight", arch, x.dtype, D, M, key_a is not None, start)
    return panel[:, :, :N]
