"""Tiles of the force kernels, by element type and architecture.

Every entry passes the compile gate (bench/gates/triton.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class ForceConfig(NamedTuple):
    """Sizes of a kernel's tile ``[block_m, block_n]`` of pairs, and its warps."""

    block_m: int
    # A kernel for small groups computes the distances of this many rows at a time.
    distance_m: int
    block_n: int
    # A partial sum of squares has this many features.
    block_k: int
    # A step of a product has this many features.
    block_d: int
    # The sums in one step of a product run over this many points.
    slice: int
    num_warps: int
    # Kernels that sum affinities keep more of each pair, so they get a number of warps of their
    # own.
    weighted_warps: int


INTERPRETED = ForceConfig(
    block_m=32,
    distance_m=32,
    block_n=32,
    block_k=4,
    block_d=16,
    slice=16,
    num_warps=4,
    weighted_warps=4,
)


def block(size: int, most: int = 1 << 30) -> int:
    """The power of two that holds `size`, from 16 to `most`."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


def group_points(G: int, dtype: torch.dtype) -> int:
    """How many points a group that is left to one program may have.

    The limit is higher where there are enough programs.
    """
    return 256 if G >= 32 and dtype != torch.float64 else 128


def group(P: int, dtype: torch.dtype, arch: str) -> ForceConfig:
    """The tiles for groups of P points.

    There are fewer columns than threads. So each thread loads what it needs of a feature, and
    threads exchange nothing.
    """
    points = block(P)
    if arch == "interpreter":
        return ForceConfig(
            block_m=16,
            distance_m=32 if points > 16 else 16,
            block_n=points,
            block_k=16,
            block_d=16,
            slice=16,
            num_warps=4,
            weighted_warps=4,
        )
    # This says whether a thread has few pairs.
    few = dtype == torch.float64 or (arch == "sm_80" and points <= 32)
    warps = max(1, min(8, points // (8 if dtype == torch.float64 else 16)))
    pairs = (8 if few else 16) * 32 * warps
    rows, most = (max(16, min(points, count // points)) for count in (pairs, 2 * pairs))
    return ForceConfig(
        block_m=rows,
        distance_m=most,
        block_n=points,
        block_k=32,
        block_d=32 if points <= 32 else 64,
        slice=32,
        num_warps=warps,
        weighted_warps=warps,
    )


def tiles(dtype: torch.dtype, arch: str) -> ForceConfig:
    """The tiles for sets of any size."""
    if arch == "interpreter":
        return INTERPRETED
    if dtype == torch.float64:
        return ForceConfig(
            block_m=16,
            distance_m=16,
            block_n=64,
            block_k=32,
            block_d=32,
            slice=32,
            num_warps=4,
            weighted_warps=4,
        )
    return ForceConfig(
        block_m=32,
        distance_m=32,
        block_n=128,
        block_k=32,
        block_d=32,
        slice=32,
        num_warps=4,
        weighted_warps=8,
    )
