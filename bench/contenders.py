"""A row's contenders are the dense eager code, torch.compile of it, and the package's backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fused_contrastive.backends import dispatch

from .losses import DTYPES, LOSSES, Size

BASELINES = ("eager", "compile")
KNOWN = tuple(name for name in dispatch.NAMES if name != "eager")
"""These are the package's streaming backends."""


def names(device: torch.device) -> list[str]:
    """Returns the contenders that can run on `device`.

    The baselines come first, then the available backends.
    """
    return [*BASELINES, *(name for name in KNOWN if refusal(name, device, "fp32") is None)]


def default(device: torch.device) -> str:
    """Returns the backend that serves this device when none is named."""
    return dispatch.select(None, device, torch.float32)


def refusal(name: str, device: torch.device, dtype: str) -> str | None:
    """Returns why contender `name` cannot run here, or None."""
    if dtype == "tf32" and device.type != "cuda":
        return "tf32 needs a CUDA device"
    if name in BASELINES:
        return None
    return dispatch.refusal(name, device, DTYPES[dtype])


def too_large(loss: str, name: str, size: Size, dtype: str) -> str | None:
    """Returns why the dense form would exhaust this machine's main memory, or None.

    The dense form was measured to hold four matrices at once.
    """
    if name not in BASELINES:
        return None
    needed, there = 4 * LOSSES[loss].cells(size) * DTYPES[dtype].itemsize, available_bytes()
    return (
        None
        if there is None or needed < there
        else f"needs about {needed / 1e9:.0f} GB of memory, {there / 1e9:.0f} are free"
    )


def available_bytes() -> int | None:
    """Returns the main memory that can be had without swapping.

    The result is None where the system does not say.
    """
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None
    )


def function(loss: str, name: str) -> Callable:
    """Returns the loss as contender `name` computes it.

    "compile" is compiled for static shapes at its first call.
    """
    if name == "eager":
        return LOSSES[loss].eager
    if name == "compile":
        return torch.compile(LOSSES[loss].eager, dynamic=False)
    return partial(LOSSES[loss].call, backend=name)
