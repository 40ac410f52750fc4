"""The contenders of a row: the dense eager code, torch.compile of it, and every backend of the package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from fused_contrastive import dispatch

from .losses import DTYPES, LOSSES

BASELINES = ("eager", "compile")
KNOWN = tuple(name for name in dispatch.NAMES if name != "eager")
"""The package's streaming backends."""


def names(device: torch.device) -> list[str]:
    """Contenders that can run on `device`: the baselines, then the available backends."""
    return [*BASELINES, *(name for name in KNOWN if refusal(name, device, "fp32") is None)]


def default(device: torch.device) -> str:
    """The backend that serves this device when none is named."""
    return dispatch.select(None, device, torch.float32)


def refusal(name: str, device: torch.device, dtype: str) -> str | None:
    """Why contender `name` cannot run here, or None."""
    if dtype == "tf32" and device.type != "cuda":
        return "tf32 needs a CUDA device"
    if name in BASELINES:
        return None
    return dispatch.refusal(name, device, DTYPES[dtype])


def function(loss: str, name: str) -> Callable:
    """The loss as contender `name` computes it; "compile" is compiled for static shapes at its first call."""
    if name == "eager":
        return LOSSES[loss].eager
    if name == "compile":
        return torch.compile(LOSSES[loss].eager, dynamic=False)
    return partial(LOSSES[loss].call, backend=name)
