"""The static configuration table, and the precision of products.

Tile sizes, warps and stages depend on the kernel, the architecture, the class of the elements, D,
and what is masked. Every entry passes the compile gate (``python -m bench.gates.triton``). There
nothing may spill, and shared memory must stay within 99 KiB on sm_80 and within the architecture's
limit elsewhere. Timings decide between entries only inside `autotune`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from ..dtypes import float32_precision
from . import support

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """A tile ``[block_m, block_n]``, and the `block_k` features that one step reads."""

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
"""The architectures where a thread of a product's tile holds rows r and r + 8 of its columns."""

FEW_ROWS = 16
"""Groups of at most this many rows get tiles of this many."""

RESIDENT_D = 128
"""Up to this D, pair_reduce and sigmoid_reduce keep one operand of 16-bit elements on chip."""

_override: dict[str, Config] = {}
_assumed: str | None = None
_tuning = False
_fastest: dict[tuple, Config] = {}


def element_class(dtype: torch.dtype) -> str:
    """The row of the table that serves a dtype: "half", "float" or "double"."""
    return {torch.float64: "double", torch.float32: "float"}.get(dtype, "half")


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def architecture(device: torch.device) -> str:
    """The entry of the table that serves a device.

    An NVIDIA part without an entry shares that of its kind of tensor core and shared memory.
    """
    if _assumed is not None:
        return _assumed
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    index = device.index if device.index is not None else torch.cuda.current_device()
    major, _ = _capability(index)
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def precision(dtype: torch.dtype, arch: str) -> str:
    """``tl.dot``'s input_precision, which matters for float32 alone.

    There, torch's setting decides (`float32_precision`). "highest" asks for float32-class
    accuracy, by three tf32 products. Where these are unsafe (support.py) or unknown (AMD), plain
    float32 serves. "high" and "medium" ask for one tf32 product.
    """
    if dtype != torch.float32 or arch.startswith("gfx"):
        return "ieee"
    if float32_precision() != "highest":
        return "tf32"
    return "tf32x3" if support.register_operands_are_safe(arch) else "ieee"


def select(
    kernel: str, arch: str, dtype: torch.dtype, D: int, M: int = 1 << 30, keyed: bool = False
) -> Config:
    """The configuration of `kernel` for groups of M rows of D elements.

    `keyed` says that keys decide the candidates.
    """
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
        # Otherwise the loads of the last step would spill.
        config = replace(config, block_k=32)
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
        # Then two programs fit into a multiprocessor.
        return replace(config, block_m=64, block_k=wide, num_warps=4)
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
    """The result of `start` with the configuration from the table.

    Inside `autotune` it is the fastest of that one's neighbours, timed once per entry.
    """
    config = select(kernel, arch, dtype, D, M, keyed)
    if not _tuning or kernel in _override or arch == "interpreter":
        return start(config)
    place = kernel, arch, element_class(dtype), config
    if place not in _fastest:
        _fastest[place] = min(neighbours(config), key=lambda other: measure(lambda: start(other)))
    return start(_fastest[place])


def neighbours(config: Config) -> list[Config]:
    """The configuration, and those that differ in the stages, the warps or the tile's width."""
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
    """The milliseconds that `work` takes on the device; infinity for what does not fit on it."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return do_bench(work, warmup=10, rep=50)
    except OutOfResources:
        return float("inf")


@contextlib.contextmanager
def autotune():
    """Use the fastest neighbour of every configuration that is used inside the ``with`` block.

    Neighbours are timed once, and what was fastest is used inside such blocks until the process
    ends. Results may then differ in the last bits between machines. The host waits for the device
    when it measures.
    """
    global _tuning
    previous, _tuning = _tuning, True
    try:
        yield
    finally:
        _tuning = previous


@contextlib.contextmanager
def override(**configs: Config):
    """Use these configurations, by kernel name, inside the ``with`` block.

    This is for tests and measurements.
    """
    previous = dict(_override)
    _override.update(configs)
    try:
        yield
    finally:
        _override.clear()
        _override.update(previous)


@contextlib.contextmanager
def assume(arch: str):
    """Choose as if every tensor were on this architecture inside the ``with`` block.

    This is for the compile gate.
    """
    global _assumed
    previous, _assumed = _assumed, arch
    try:
        yield
    finally:
        _assumed = previous
