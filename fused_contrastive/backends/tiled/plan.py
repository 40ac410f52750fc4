"""How tile kernels divide their work: candidates in the form they take, super-tiles, panels of a bounded workspace."""

from __future__ import annotations

import math

WORKSPACE = 256 << 20
"""Bytes of one panel of gradient weights."""

FAR = 1 << 30
"""An offset beyond any index, small enough for 32-bit differences."""


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def resolve(kind: str, offset: int, stride: int, M: int, N: int) -> tuple[str, int, int]:
    """The same candidates with an offset and a stride of the order of M and N, and no mask where none is needed."""
    if kind == "not_pair":
        offset = (offset + stride // 2) % stride - stride // 2
        if stride < 2 * (M + N):
            return kind, offset % stride, stride
        kind = "not_self"
    if kind == "not_self" and not -M < offset < N:
        kind = "all"
    return kind, max(-FAR, min(offset, FAR)), 1


def super_tile(M: int, N: int, symmetric: bool, unit: int) -> int:
    """Rows and columns of a super-tile: about 2000 of them once the matrix is large, of whole tiles of `unit`."""
    return max(1, ceil_div(math.isqrt(M * N // (4096 if symmetric else 2048)), unit)) * unit


def blocks(size: int, most: int) -> list[slice]:
    """[0, size) in equal slices of at most `most`, of a multiple of 256 (16 when small) elements."""
    most = max(most, 16)
    unit = 256 if most >= 1024 else 16
    step = ceil_div(size, ceil_div(size, most // unit * unit))
    step = min(size, ceil_div(step, unit) * unit)
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def panels(
    G: int, M: int, N: int, symmetric: bool, capacity: int
) -> list[tuple[slice, slice, slice]]:
    """``(g, i, j)`` of the panels of at most about `capacity` elements: several groups at once, or parts of one; `symmetric`: only j >= i."""
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
