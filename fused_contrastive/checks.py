"""Argument checks that the public functions share.

Each error names the argument, what was given and what is expected.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch

from ._torch_internals import are_transforms_active
from .dtypes import in_autocast

REDUCTIONS = ("none", "mean", "sum")


def embeddings(
    name: str, x, *, dim: int | None = None, at_least: int | None = None, like: tuple | None = None
) -> None:
    """Check that x is a floating-point tensor.

    Args:
        name: the name of the argument.
        x: the argument.
        dim: how many dimensions it must have.
        at_least: how many dimensions it must have at least.
        like: ``(name, tensor)``, whose device it must have and, outside autocast, whose dtype.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    dense(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}")
    if dim is not None and x.dim() != dim:
        raise ValueError(f"{name} must have {dim} dimensions, got shape {tuple(x.shape)}")
    if at_least is not None and x.dim() < at_least:
        raise ValueError(
            f"{name} must have at least {at_least} dimensions, got shape {tuple(x.shape)}"
        )
    if like is None:
        return
    other, reference = like
    if x.device != reference.device:
        raise ValueError(
            f"{name} must be on the device of {other} ({reference.device}), got {x.device}"
        )
    if x.dtype != reference.dtype and not in_autocast(x.device):
        raise TypeError(f"{name} must have the dtype of {other} ({reference.dtype}), got {x.dtype}")


def dense(name: str, x: torch.Tensor) -> None:
    """Check that x is a plain tensor, neither sparse nor nested."""
    if x.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pad it first")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {x.layout}")


def readable() -> bool:
    """Whether tensors have values that can be looked at.

    They have none inside torch.compile, nor inside torch.func's transforms.
    """
    return not (torch.compiler.is_compiling() or are_transforms_active())


def same_shape(name: str, x: torch.Tensor, other: str, reference: torch.Tensor) -> None:
    """Check that x has the shape of `reference`, the argument `other`."""
    if x.shape != reference.shape:
        raise ValueError(
            f"{name} must have the shape of {other}, {tuple(reference.shape)}, got {tuple(x.shape)}"
        )


def is_integer(x: torch.Tensor) -> bool:
    """Whether x has an integer dtype. Booleans are no integers."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def keys(name: str, key, shape: Sequence[int], device: torch.device) -> None:
    """Check that `key` is an integer tensor on `device` that broadcasts to ``[..., rows]``."""
    if not isinstance(key, torch.Tensor) or not is_integer(key):
        raise TypeError(
            f"{name} must be an integer tensor, got {getattr(key, 'dtype', type(key).__name__)}"
        )
    dense(name, key)
    if key.device != device:
        raise ValueError(f"{name} must be on {device}, got {key.device}")
    or_fewer = ", or leading dimensions that broadcast to it" if len(shape) > 1 else ""
    if key.dim() == 0 or key.shape[-1] != shape[-1] or not broadcastable(key.shape, shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}{or_fewer}, got {tuple(key.shape)}")


def array(name: str, x, shape: tuple, device: torch.device) -> None:
    """Check that x is a real tensor of this shape on `device`, of any dtype."""
    if not isinstance(x, torch.Tensor) or x.is_complex():
        raise TypeError(
            f"{name} must be a real tensor, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    dense(name, x)
    if x.device != device:
        raise ValueError(f"{name} must be on {device}, got {x.device}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")


def broadcastable(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of this shape can be expanded to `target`."""
    return len(shape) <= len(target) and all(
        s in (1, t) for s, t in zip(reversed(shape), reversed(target), strict=False)
    )


def number(name: str, value, device: torch.device, *, divisor: bool = False) -> None:
    """Check that `value` is a finite number, or a 0-d floating-point tensor on `device` or the CPU.

    The value of a tensor is never read. A number that is a `divisor` must not be smaller than 1e-8
    in magnitude.
    """
    if isinstance(value, torch.Tensor):
        dense(name, value)
        if value.dim() != 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a 0-d floating-point tensor, "
                f"got {value.dtype}, shape {tuple(value.shape)}"
                + (": scale the rows themselves where each has its own" if value.dim() else "")
            )
        if value.device != device and value.device.type != "cpu":
            raise ValueError(f"{name} must be on {device} or the CPU, got {value.device}")
        return
    if isinstance(value, bool) or not isinstance(
        value, (numbers.Real, torch.SymInt, torch.SymFloat)
    ):
        raise TypeError(f"{name} must be a number or a 0-d tensor, got {type(value).__name__}")
    # Comparisons keep a symbolic number symbolic.
    plain: Any = value
    if not -math.inf < plain < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    if divisor and -1e-8 < plain < 1e-8:
        raise ValueError(f"{name} must not be smaller than 1e-8 in magnitude, got {value}")


def interval(name: str, value, low: float, high: float, *, closed: bool = True) -> None:
    """Check that `value` is a number in [low, high].

    Unless the interval is `closed`, high itself is left out.
    """
    if isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a number, got a tensor")
    number(name, value, torch.device("cpu"))
    if not low <= value <= high or (value == high and not closed):
        raise ValueError(f"{name} must be in [{low}, {high}{']' if closed else ')'}, got {value}")


def index(name: str, value) -> None:
    """Check that `value` is an integer or None."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, torch.SymInt))
    ):
        raise TypeError(f"{name} must be an integer or None, got {type(value).__name__}")


def choice(name: str, value, options: tuple) -> None:
    """Check that `value` is one of the options."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def flags(**values) -> None:
    """Check that all values are booleans."""
    for name, value in values.items():
        choice(name, value, (True, False))
