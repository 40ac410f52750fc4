"""Argument checks shared by the public functions: each error names the argument, what was given and what is expected."""

from __future__ import annotations

import math
import numbers

import torch

from ._torch_internals import are_transforms_active
from .dtypes import in_autocast

REDUCTIONS = ("none", "mean", "sum")


def embeddings(
    name: str, x, *, dim: int | None = None, at_least: int | None = None, like: tuple | None = None
) -> None:
    """Floating tensor of `dim` (or `at_least`) dimensions, with the device and, outside autocast, the dtype of ``like = (name, tensor)``."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
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


def readable() -> bool:
    """Whether tensors have values that can be looked at: not inside torch.compile, nor inside torch.func's transforms."""
    return not (torch.compiler.is_compiling() or are_transforms_active())


def same_shape(name: str, x: torch.Tensor, other: str, reference: torch.Tensor) -> None:
    if x.shape != reference.shape:
        raise ValueError(
            f"{name} must have the shape of {other}, {tuple(reference.shape)}, got {tuple(x.shape)}"
        )


def is_integer(x: torch.Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def keys(name: str, key, shape: torch.Size, device: torch.device) -> None:
    """Integer tensor broadcastable to `shape`, ``[..., rows]``."""
    if not isinstance(key, torch.Tensor) or not is_integer(key):
        raise TypeError(
            f"{name} must be an integer tensor, got {getattr(key, 'dtype', type(key).__name__)}"
        )
    if key.device != device:
        raise ValueError(f"{name} must be on {device}, got {key.device}")
    if key.dim() == 0 or key.shape[-1] != shape[-1] or not broadcastable(key.shape, shape):
        raise ValueError(
            f"{name} must be broadcastable to shape {tuple(shape)}, got {tuple(key.shape)}"
        )


def array(name: str, x, shape: tuple, device: torch.device) -> None:
    """Real tensor of this shape on `device`, of any dtype."""
    if not isinstance(x, torch.Tensor) or x.is_complex():
        raise TypeError(
            f"{name} must be a real tensor, got {getattr(x, 'dtype', type(x).__name__)}"
        )
    if x.device != device:
        raise ValueError(f"{name} must be on {device}, got {x.device}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")


def broadcastable(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        s in (1, t) for s, t in zip(reversed(shape), reversed(target), strict=False)
    )


def number(name: str, value, device: torch.device, *, divisor: bool = False) -> None:
    """A finite number, or a 0-d floating tensor on `device` or the CPU, whose value is never read."""
    if isinstance(value, torch.Tensor):
        if value.dim() != 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a 0-d floating-point tensor, got {value.dtype}, shape {tuple(value.shape)}"
            )
        if value.device != device and value.device.type != "cpu":
            raise ValueError(f"{name} must be on {device} or the CPU, got {value.device}")
        return
    if isinstance(value, bool) or not isinstance(
        value, (numbers.Real, torch.SymInt, torch.SymFloat)
    ):
        raise TypeError(f"{name} must be a number or a 0-d tensor, got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    if divisor and -1e-8 < value < 1e-8:
        raise ValueError(f"{name} must not be smaller than 1e-8 in magnitude, got {value}")


def interval(name: str, value, low: float, high: float, *, closed: bool = True) -> None:
    """A number in [low, high], without high itself where the interval is not `closed`."""
    if isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a number, got a tensor")
    number(name, value, torch.device("cpu"))
    if not low <= value <= high or (value == high and not closed):
        raise ValueError(f"{name} must be in [{low}, {high}{']' if closed else ')'}, got {value}")


def index(name: str, value) -> None:
    """An integer or None."""
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, torch.SymInt))
    ):
        raise TypeError(f"{name} must be an integer or None, got {type(value).__name__}")


def choice(name: str, value, options: tuple) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def flags(**values) -> None:
    """Booleans, by name."""
    for name, value in values.items():
        choice(name, value, (True, False))
