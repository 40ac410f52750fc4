"""What the integrations share: the package, the warning that its own code runs, what streams."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from .. import checks
from ..autograd.over_ranks import sum_over_ranks
from ..backends._warnings import warn
from ..distributed.groups import Ranks
from ..dtypes import in_autocast, matrix_dtype
from ..problem import MaybeNone

LOW = (torch.float16, torch.bfloat16)


class FallbackWarning(UserWarning):
    """The package's own code runs, with its own use of memory."""


def package(module: str, distribution: str) -> Any:
    """The imported module of another package, or an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"fused_contrastive.integrations needs {module!r}, "
            f"which cannot be imported ({error}): pip install {distribution}"
        ) from error


class DifferenceWarning(UserWarning):
    """The numbers are not the package's, where the package's are wrong."""


def falls_back(what: str, reason: str) -> None:
    """Say, once for each reason and line, that what was asked of `what` does not stream.

    Args:
        what: the class or function that was called. Its name begins with that of its package.
        reason: why it does not stream.
    """
    message = f"{what} does not stream here and runs the package's own code: {reason}"
    warn(message, FallbackWarning, beside=what.partition(".")[0])


def differs(what: str, how: str) -> None:
    """Say, once for each line, that `what` gives other numbers than its package.

    Args:
        what: the class that was called. Its name begins with that of its package.
        how: what the package does, and what is done here.
    """
    message = f"{what} does not give the package's numbers here: {how}"
    warn(message, DifferenceWarning, beside=what.partition(".")[0])


def mismatch(*tensors: torch.Tensor, dim: int = 2) -> str | None:
    """Why these tensors do not stream together; None: they do.

    They have to be dense floating tensors of `dim` dimensions each, and none may be empty. They
    share the device, the last dimension and, outside autocast, the dtype.
    """
    first = tensors[0]
    for x in tensors:
        if (
            not isinstance(x, torch.Tensor)
            or x.layout != torch.strided
            or not x.is_floating_point()
        ):
            return "inputs that are not dense floating-point tensors"
        if x.dim() != dim or x.shape[-1] != first.shape[-1]:
            return f"inputs of shapes {', '.join(str(tuple(x.shape)) for x in tensors)}"
        if x.device != first.device or matrix_dtype(x) != matrix_dtype(first):
            return "inputs of different devices or dtypes"
        if not x.numel():
            return f"an empty input, of shape {tuple(x.shape)}"
        if x.dtype in LOW and x.dtype != matrix_dtype(x):
            return f"inputs of {x.dtype} inside autocast to {matrix_dtype(x)}"
    return None


def number(value, like: torch.Tensor, *, divisor: bool = False) -> float | torch.Tensor | MaybeNone:
    """`value` as the losses take it: a finite number, which is not 0 as a divisor, or a 0-d tensor.

    A tensor of one element becomes 0-d. Anything else gives None. A negative divisor becomes a
    tensor, for the packages take it without a warning.
    """
    if isinstance(value, torch.Tensor):
        lowered = in_autocast(like.device) and value.dtype != torch.float64
        promotes = value.dim() > 0 and value.dtype != like.dtype and not lowered
        if value.numel() != 1 or value.dim() > like.dim() or promotes:
            return None
        value = value.reshape(())
    elif hasattr(value, "item"):
        # A number of NumPy's type would be computed with in its own precision.
        value = value.item()
    try:
        checks.number("value", value, like.device, divisor=divisor)
    except (TypeError, ValueError):
        return None
    if divisor and isinstance(value, (int, float)) and value < 0:
        return torch.tensor(value, dtype=torch.float64)
    return value


def in_dtype_of(
    x: torch.Tensor, loss: torch.Tensor, operations: Callable | None = None
) -> torch.Tensor:
    """The loss in the dtype that the package's operations would have given it.

    This is that of the inputs. Inside autocast, whose choice depends on the device, it is that of
    `operations` on one row, or float32.
    """
    if not in_autocast(x.device):
        return loss.to(x.dtype)
    return loss if operations is None else loss.to(operations(x.detach()[:1]).dtype)


def world():
    """The process group of all ranks; None: there are not several."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return dist.group.WORLD


class MeanOfRanks(torch.autograd.Function):
    """The mean of the ranks' losses, with the gradient of this rank's own loss."""

    @staticmethod
    def forward(loss, group):
        ranks = Ranks(group.group_name, "auto", "the mean of the ranks' losses")
        return sum_over_ranks(loss, ranks.encode()) / ranks.size

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g, None


class ScaledGradient(torch.autograd.Function):
    """x itself, with `factor` times its gradient."""

    @staticmethod
    def forward(x, factor):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g, None
