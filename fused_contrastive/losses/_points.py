"""What the force and the drift losses share: checks of points and temperatures, and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import checks
from ..scalars import inverse_scale
from ._arguments import check_temperature


def points_dtype(name_a: str, a: Tensor, name_b: str, b: Tensor) -> torch.dtype:
    """The dtype of the computation, once both sets of points are checked.

    Args:
        a, b: ``[..., n, D]``, each with its own n.

    Raises:
        ValueError, TypeError: an argument is wrong; the error names it.
    """
    checks.embeddings(name_a, a, at_least=2)
    checks.embeddings(name_b, b, at_least=2, like=(name_a, a))
    if b.shape[:-2] != a.shape[:-2] or b.shape[-1] != a.shape[-1]:
        raise ValueError(
            f"{name_b} must have shape [..., n, D] matching {name_a} {tuple(a.shape)}, "
            f"got {tuple(b.shape)}"
        )
    return torch.promote_types(a.dtype, b.dtype)


def check_temperatures(temperatures) -> None:
    """Raise TypeError or ValueError unless `temperatures` is a sequence that is not empty."""
    if isinstance(temperatures, str) or not isinstance(temperatures, Sequence):
        raise TypeError(
            f"temperatures must be a sequence of numbers, got {type(temperatures).__name__}"
        )
    if not temperatures:
        raise ValueError("temperatures must not be empty")


def inverse_temperatures(temperatures, like: Tensor) -> Tensor:
    """``[K]`` in the accumulation dtype and on the device of `like`, which has any shape."""
    check_temperatures(temperatures)
    for value in temperatures:
        check_temperature(value, like.device, "temperatures")
    return torch.stack([inverse_scale(value, like) for value in temperatures])


def stacked(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """The points of both sets, group by group.

    Args:
        first, second: ``[..., n, D]`` and ``[..., N, D]``.

    Returns:
        ``[G, n + N, D]`` in `dtype`, where G counts the leading indices.
    """
    return torch.cat([_groups(first).to(dtype), _groups(second).to(dtype)], 1)


def _groups(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
