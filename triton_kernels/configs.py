"""The static configuration table: tile sizes, warps and stages by kernel, architecture, element class, D, and what is masked.

Every entry passes the compile gate (``python -m bench.gates.triton``): no spills, shared memory within 99 KiB on sm_80 and within
the architecture's limit elsewhere. Timings decide between entries only inside `autotune`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Tile ``[block_m, block_n]``, features per step `block_k`."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1


ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
INTERPRETER = Config(32, 64, 32)

_TILES = {
    ("sm_80", "half"): Config(128, 128, 64, 8, 3),
    ("sm_90", "half"): Config(128, 128, 64, 8, 3),
    ("sm_100", "half"): Config(128, 64, 64, 8, 3),
    ("gfx942", "half"): Config(128, 128, 64, 8, 2),
    ("sm_80", "float"): Config(128, 64, 16, 8, 3),
    ("sm_90", "float"): Config(128, 64, 32, 8, 2),
    ("sm_100", "float"): Config(128, 64, 32, 8, 2),
    ("gfx942", "float"): Config(128, 64, 32, 8, 2),
    ("sm_80", "double"): Config(64, 64, 16, 8, 2),
    ("sm_90", "double"): Config(64, 64, 16, 8, 2),
    ("sm_100", "double"): Config(64, 64, 16, 8, 2),
    ("gfx942", "double"): Config(64, 64, 16, 8, 2),
}
PAIRED_ROWS = ("sm_80", "sm_90", "interpreter")
"""Where a thread of a product's tile holds rows r and r + 8 of the same columns."""

FEW_ROWS = 16
"""Groups of at most this many rows get tiles of this many."""

RESIDENT_D = 128
"""pair_reduce and sigmoid_reduce keep one operand on chip up to this D (16-bit elements)."""

_override: dict[str, Config] = {}
_assumed: str | None = None
_tuning = False
_fastest: dict[tuple, Config] = {}


def element_class(dtype: torch.dtype) -> str:
    return {torch.float64: "double", torch.float32: "float"}.get(dtype, "half")


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def architecture(device: torch.device) -> str:
    """The entry of the table that serves a device; other NVIDIA parts share that of their kind of tensor core and shared memory."""
    if _assumed is not None:
        return _assumed
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    index = device.index if device.index is not None else torch.cuda.current_device()
    major, _ = _capability(index)
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def select(
    kernel: str, arch: str, dtype: torch.dtype, D: int, M: int = 1 << 30, keyed: bool = False
) -> Config:
    """The configuration of `kernel` for groups of M rows of D elements; `keyed`: candidates are decided by keys."""
    if kernel in _override:
        return _override[kernel]
    if arch == "interpreter":
        return INTERPRETER
    kind = element_class(dtype)
    config = _TILES[arch, kind]
    if kernel == "fused_rows":
        return Config(128, 64, 64 if D <= 64 else 128, 8, 2)
    if kind == "half" and keyed:
        config = (
            replace(config, block_m=64, block_n=64, num_warps=4)
            if arch == "gfx942"
            else replace(config, block_n=64)
        )
    if kernel == "sigmoid_weight" and kind == "half" and arch == "sm_80" and D % config.block_k:
        config = replace(config, block_k=32)  # the loads of the last step would spill
    if kind != "double" and M <= FEW_ROWS:
        return replace(config, block_m=FEW_ROWS, block_n=128 if kind == "half" else 64, num_warps=4)
    if (
        kernel in ("pair_reduce", "sigmoid_reduce")
        and kind == "half"
        and D <= RESIDENT_D
        and not keyed
        and arch != "gfx942"
    ):
        wide = config.block_k if D <= 64 else 128
        if arch == "sm_100":
            return replace(config, block_k=wide, num_warps=8 if kernel == "pair_reduce" else 4)
        return replace(
            config, block_m=64, block_k=wide, num_warps=4
        )  # two programs per multiprocessor
    return config


def run(
    kernel: str,
    arch: str,
    dtype: torch.dtype,
    D: int,
    M: int,
    keyed: bool,
    start: Callable[[Config], T],
) -> T:
    """`start` with the configuration from the table; inside `autotune` with the fastest of its neighbours, timed once per entry."""
    config = select(kernel, arch, dtype, D, M, keyed)
    if not _tuning or kernel in _override or arch == "interpreter":
        return start(config)
    place = kernel, arch, element_class(dtype), config
    if place not in _fastest:
        _fastest[place] = min(neighbours(config), key=lambda other: measure(lambda: start(other)))
    return start(_fastest[place])


def neighbours(config: Config) -> list[Config]:
    """The configuration and what differs from it in the stages, the warps or the width of the tile."""
    return [
        config,
        *(
            replace(config, num_stages=stages)
            for stages in (2, 3, 4)
            if stages != config.num_stages
        ),
        replace(config, num_warps=12 - config.num_warps),
        replace(config, block_n=192 - config.block_n),
    ]


def measure(work: Callable[[], object]) -> float:
    """Milliseconds on the device; infinity for what does not fit on it."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return do_bench(work, warmup=10, rep=50)
    except OutOfResources:
        return float("inf")


@contextlib.contextmanager
def autotune():
    """Time the neighbours of every configuration used inside the ``with`` block, once, and use the fastest (until the process ends).

    Results may then differ in the last bits between machines. Synchronises with the device when it measures.
    """
    global _tuning
    previous, _tuning = _tuning, True
    try:
        yield
    finally:
        _tuning = previous


@contextlib.contextmanager
def override(**configs: Config):
    """Use these configurations, by kernel name, inside the ``with`` block (for tests and measurements)."""
    previous = dict(_override)
    _override.update(configs)
    try:
        yield
    finally:
        _override.clear()
        _override.update(previous)


@contextlib.contextmanager
def assume(arch: str):
    """Choose as if every tensor were on this architecture, inside the ``with`` block (for the compile gate)."""
    global _assumed
    previous, _assumed = _assumed, arch
    try:
        yield
    finally:
        _assumed = previous
