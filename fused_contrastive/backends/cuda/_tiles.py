"""What the families of pairs share on the native CUDA backend: constants of the kernels in csrc/cuda, how float32 is multiplied, the gradient of
one set from a sum over panels of weights."""

from __future__ import annotations

import torch

from ...dtypes import float32_precision
from ...problem import KEYED
from ..tiled.plan import ceil_div

TF32, TF32X3, FMA = range(3)
TF32_CORES = ((8, 0), (9, 0), (10, 0), (10, 3))
"""Compute capabilities whose tensor cores run tf32 at four times the float32 rate or more: three products beat one multiply-add."""

TILE = 128
TILE_F64 = 64
TILE_SM90 = 256
FINISH_ROWS = 8
HALF_RANGE = 8192.0


def float32_products(x: torch.Tensor) -> int:
    """How float32 matrices like x are multiplied, by torch's setting. "highest": float32-class accuracy (three tf32 products, or plain
    multiply-adds where tensor cores do not make that faster); "high" and "medium": one tf32 product."""
    if x.dtype != torch.float32:
        return FMA
    if float32_precision() != "highest":
        return TF32
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) not in TF32_CORES:
        return FMA
    return TF32X3


def super_unit(x: torch.Tensor) -> int:
    """Super-tiles are whole tiles: a multiple of this many columns."""
    if x.dtype == torch.float64:
        return TILE_F64
    wide = x.is_cuda and x.itemsize == 2 and torch.cuda.get_device_capability(x.device)[0] == 9
    return TILE_SM90 if wide else TILE


def keys_of(kind, key_a, key_b, one_set):
    if kind not in KEYED:
        return None, None
    key_a = key_a.contiguous()
    return key_a, key_a if one_set else key_b.contiguous()


def panel_size(g: slice, i: slice, j: slice) -> int:
    """Elements of a panel of weights."""
    return (g.stop - g.start) * (i.stop - i.start) * ceil_div(j.stop - j.start, 16) * 16


def as_upstream(g):
    """Contiguous, or as it is where one element stands for all: the gradient of a mean."""
    same = all(size == 1 or step == 0 for size, step in zip(g.shape, g.stride(), strict=True))
    return g if same else g.contiguous()


def finish_set(
    operators,
    gradient,
    x,
    y,
    given,
    inv,
    *,
    pull,
    scale,
    unit,
    positive,
    near,
    far,
    need_x,
    need_scale,
):
    """(gradient of the set `given`, whose rounded rows are x, or empty; partial sums of the scale's gradient or empty)."""
    G, X, _ = x.shape
    dx = torch.empty(x.shape if need_x else (0,), dtype=given.dtype, device=x.device)
    radial = scale.new_empty(G * ceil_div(X, FINISH_ROWS) if need_scale else 0, dtype=torch.float64)
    paired = pull.numel() > 0
    operators.finish_backward(
        gradient,
        x,
        y,
        given.contiguous(),
        inv,
        pull,
        scale,
        unit,
        dx,
        radial,
        positive,
        near and paired,
        far and paired,
        near and far,
    )
    return dx, radial
