"""Tiles of the force kernels, by element type and architecture. Every entry passes the compile gate (bench/compile_gate.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch


class ForceConfig(NamedTuple):
    """Tile ``[block_m, block_n]`` of pairs; `block_k` features in a partial sum of squares, `block_d` in a step of a product."""

    block_m: int
    block_n: int
    block_k: int
    block_d: int
    num_warps: int


INTERPRETED = ForceConfig(16, 32, 8, 16, 4)


def group_points(dtype: torch.dtype) -> int:
    """Most points of a group whose distances one program keeps in registers."""
    return 64 if dtype == torch.float64 else 128


def block(size: int, most: int = 1 << 30) -> int:
    """The power of two that holds `size`, from 16 to `most`."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


def group(P: int, dtype: torch.dtype, arch: str) -> ForceConfig:
    """For groups of P points. Few enough points per thread that a thread loads the ones it needs of a feature itself."""
    points = block(P)
    features = 16 if arch == "interpreter" else 32
    return ForceConfig(points, points, features, features, max(1, points // 16))


def tiles(dtype: torch.dtype, arch: str) -> ForceConfig:
    """For sets of any size."""
    if arch == "interpreter":
        return INTERPRETED
    if dtype == torch.float64 or arch == "gfx942":
        return ForceConfig(64, 64, 32, 32, 4)
    return ForceConfig(128, 128, 32, 32, 8)
