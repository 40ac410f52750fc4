"""What the families of pairs share on the CUDA backend.

It holds the library's operators, the constants of the kernels in csrc/cuda, and the choice of how
float32 matrices are multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dtypes import float32_precision

LIBRARIES: dict[str, Any] = {}
"""The namespace of the operators by device type.

"cuda" is there once the library is loaded. The tests add their host library for "cpu".
"""

TF32, TF32X3, FMA = range(3)
"""How float32 is multiplied: one tf32 product, three of them, or plain multiply-adds."""

TF32_CORES = ((8, 0), (9, 0), (10, 0), (10, 3))
"""The tensor cores of these compute capabilities run tf32 at four or more times the float32 rate.

There, three tf32 products beat one multiply-add.
"""

TILE = 128
"""A tile has this many columns in csrc/cuda. Below are those of float64 and of sm_90's copies."""
TILE_F64 = 64
TILE_SM90 = 256

FINISH_ROWS = 8
"""The rows of one block of `finish_backward`, which leaves one partial sum each."""

HALF_RANGE = 8192.0
"""float16 panels hold weights times this over the largest one."""


def operators(x: Tensor):
    """The library's operators for the device of x, a tensor of any shape."""
    return LIBRARIES[x.device.type]


def float32_products(x: Tensor) -> int:
    """How matrices like x, of any shape, are multiplied where they are float32.

    torch's setting decides. "highest" asks for float32-class accuracy: three tf32 products, or
    plain multiply-adds where tensor cores do not make that faster. "high" and "medium" ask for
    one tf32 product.
    """
    if x.dtype != torch.float32:
        return FMA
    if float32_precision() != "highest":
        return TF32
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) not in TF32_CORES:
        return FMA
    return TF32X3


def super_unit(x: Tensor) -> int:
    """The side of a super-tile is a multiple of this many columns, so that it holds whole tiles.

    x is a matrix of the products, of any shape.
    """
    if x.dtype == torch.float64:
        return TILE_F64
    wide = x.is_cuda and x.itemsize == 2 and torch.cuda.get_device_capability(x.device)[0] == 9
    return TILE_SM90 if wide else TILE


def as_upstream(g: Tensor) -> Tensor:
    """g as `terms` reads it: contiguous, or as it is where one element stands for all.

    The gradient of a mean is such an element; it needs no copy. g has any shape.
    """
    same = all(size == 1 or step == 0 for size, step in zip(g.shape, g.stride(), strict=True))
    return g if same else g.contiguous()


def present(x: Tensor | None, none: Tensor) -> Tensor:
    """x, or the empty tensor `none` where x is absent: most operators take absence that way."""
    return none if x is None else x
