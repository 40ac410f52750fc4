"""How fast NT-Xent is on this machine, beside the eager form."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..autograd.similarity import similarity

SIZES = {"cpu": (128, 512, 2048), "cuda": (512, 2048, 8192)}
FEATURES = 128
SECONDS = 0.5
"""How long each size is timed, at least. Each form runs at least five times."""


class Timing(NamedTuple):
    """The median times of forward and backward pass at one size.

    `faster` is how many times as fast ours is, as the quartiles of what the rounds found.
    """

    device: str
    dtype: str
    pairs: int
    features: int
    eager_ms: float
    ms: float
    faster: tuple[float, float, float]


def measure(device: torch.device, pairs: int) -> Timing:
    """Time both forms in turns, in float32, with the backend that serves by default.

    Args:
        device: where the tensors are.
        pairs: the rows of one view.
    """
    views = [torch.randn(pairs, FEATURES, device=device).requires_grad_() for _ in range(2)]
    forms = (_eager, _streaming)
    times: tuple[list[float], list[float]] = ([], [])
    for form in forms:
        _milliseconds(form, views)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 5:
        for form, found in zip(forms, times, strict=True):
            found.append(_milliseconds(form, views))
    low, middle, high = statistics.quantiles([x / y for x, y in zip(*times, strict=True)])
    eager, ours = (statistics.median(found) for found in times)
    where = str(device), "float32", pairs, FEATURES
    return Timing(*where, eager_ms=eager, ms=ours, faster=(low, middle, high))


def _eager(z1: Tensor, z2: Tensor) -> Tensor:
    return reference.nt_xent_loss(z1, z2, 0.1)


def _streaming(z1: Tensor, z2: Tensor) -> Tensor:
    """`nt_xent_loss` less the checks of its arguments."""
    z, pairs = torch.cat([z1, z2]), len(z1)
    scale = z1.new_tensor(10.0)
    among: dict[str, Any] = {"kind": "not_pair", "stride": pairs, "positive": pairs}
    return similarity(z, None, scale, normalize=True, **among).loss.mean()


def _milliseconds(form: Callable, views: list[Tensor]) -> float:
    _wait(views[0].device)
    start = time.perf_counter()
    torch.autograd.grad(form(*views), views)
    _wait(views[0].device)
    return 1000 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    """Wait until the accelerator has done its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
