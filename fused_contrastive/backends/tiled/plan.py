"""How tile kernels divide their work: super-tiles, splits of the columns, panels of a bounded size.

This is the only place that decides it, for CUDA and for Triton.
"""

from __future__ import annotations

import math

from torch import Tensor

WORKSPACE = 256 << 20
"""The bytes of one panel of gradient weights."""

PROGRAMS = 512
"""`fused_rows` splits the columns until about this many blocks of the GPU have work."""


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def super_tile(M: int, N: int, symmetric: bool, unit: int) -> int:
    """The rows, and columns, of a super-tile: a multiple of `unit`, the side of a whole tile.

    There are about 2000 super-tiles once the matrix is large.
    """
    side = math.isqrt(M * N // (4096 if symmetric else 2048))
    return max(1, ceil_div(side, unit)) * unit


def slot_count(
    shape: tuple[int, int, int],  # (G, M, N)
    super_rows: int,
    symmetric: bool,
    columns: bool,
) -> int:
    """How many numbers `pair_reduce` leaves behind: a sum and a maximum per row and super-tile.

    A symmetric matrix has one more slot per row, for the mirrored part of its diagonal super-tile.
    With `columns` every column has slots too.
    """
    G, M, N = shape
    supers_m, supers_n = ceil_div(M, super_rows), ceil_div(N, super_rows)
    of_columns = supers_m * N if columns else 0
    return 2 * G * ((supers_n + symmetric) * M + of_columns)


def split_columns(
    shape: tuple[int, int, int],  # (G, M, N)
    block_m: int,
    block_n: int,
) -> int:
    """The columns that one block of `fused_rows` visits: a multiple of its tile's width."""
    G, M, N = shape
    tiles = G * ceil_div(M, block_m)
    splits = min(ceil_div(N, block_n), ceil_div(PROGRAMS, tiles))
    return ceil_div(ceil_div(N, splits), block_n) * block_n


def slices(size: int, most: int) -> list[slice]:
    """``[0, size)`` in equal slices of at most `most` elements.

    Their length is a multiple of 256, or of 16 where `most` is small.
    """
    most = max(most, 16)
    unit = 256 if most >= 1024 else 16
    step = ceil_div(size, ceil_div(size, most // unit * unit))
    step = min(size, ceil_div(step, unit) * unit)
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


def panels(
    G: int, M: int, N: int, symmetric: bool, capacity: int
) -> list[tuple[slice, slice, slice]]:
    """The panels ``(g, i, j)`` of at most about `capacity` elements that make up ``[G, M, N]``.

    A panel is several whole groups, or a part of one group. A symmetric matrix gets only the
    panels at or above its diagonal.
    """
    whole = M * leading_dimension(N)
    if whole <= capacity:
        step = min(G, capacity // whole)
        return [(slice(g, min(g + step, G)), slice(0, M), slice(0, N)) for g in range(0, G, step)]
    square = math.isqrt(capacity)
    if symmetric:
        parts = slices(N, square)
        pairs = [(i, j) for n, i in enumerate(parts) for j in parts[n:]]
    else:
        wide = min(N, max(square, capacity // M))
        column_parts = slices(N, wide)
        row_parts = slices(M, capacity // leading_dimension(column_parts[0].stop))
        pairs = [(i, j) for i in row_parts for j in column_parts]
    return [(slice(g, g + 1), i, j) for g in range(G) for i, j in pairs]


def leading_dimension(columns: int) -> int:
    """The elements between two rows of a panel: its columns, rounded up to a multiple of 16."""
    return ceil_div(columns, 16) * 16


def panel_of(
    workspace: Tensor,  # [elements of the largest panel]
    g: slice,
    i: slice,
    j: slice,
) -> Tensor:
    """The panel of these slices in the workspace, ``[g, i, leading_dimension(j)]``."""
    groups, rows = g.stop - g.start, i.stop - i.start
    width = leading_dimension(j.stop - j.start)
    return workspace[: groups * rows * width].view(groups, rows, width)
