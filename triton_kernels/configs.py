"""The static configuration table: tile sizes, warps and stages by kernel, architecture, element class and D."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """Tile ``[block_m, block_n]``, features per step `block_k`."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1


INTERPRETER = Config(32, 64, 32)
_override: dict[str, Config] = {}


def architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    return "sm_80"


def select(kernel: str, arch: str, dtype: torch.dtype, D: int) -> Config:
    if kernel in _override:
        return _override[kernel]
    return INTERPRETER


@contextlib.contextmanager
def override(**configs: Config):
    """Use these configurations, by kernel name, inside the ``with`` block."""
    previous = dict(_override)
    _override.update(configs)
    try:
        yield
    finally:
        _override.clear()
        _override.update(previous)
