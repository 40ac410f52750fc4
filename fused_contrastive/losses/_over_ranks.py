"""A loss over the ranks of a process group: which ranks, what they agree on, and its reduction.

The convention of every loss: with W ranks and N rows in all, a rank returns ``W / N`` times the sum
of the losses of its own rows, and its inputs receive the gradient of the sum of what all ranks
return. The mean over the ranks, which DistributedDataParallel and FSDP take of gradients, is then
exactly the mean over all rows, and its gradient.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
import torch.distributed as dist

from .. import checks
from .._torch_internals import constant_result
from ..autograd._formulas import is_transformed
from ..backends._warnings import warn
from ..distributed.groups import STRATEGIES, Ranks, resolve, told
from ._help import complete


class NotGiven:
    """The default of `group`. It means None, and warns once where several ranks are running."""

    def __repr__(self) -> str:
        return "not given"

    def __reduce__(self) -> str:
        # Copies and pickles are this very object.
        return "NOT_GIVEN"


NOT_GIVEN: Any = NotGiven()

_warned = False


def over_ranks(loss):
    """Let a loss function take `group` and `strategy`.

    The function itself is called with ``group=None``, or with the `Ranks` of the group. Where it
    raises an error, the other ranks are told, so that they raise one, too.
    """

    complete(loss)
    strategies = STRATEGIES if "strategy" in inspect.signature(loss).parameters else ("auto",)

    def checked(inputs, group, strategy, options):
        checks.choice("strategy", strategy, strategies)
        return loss(*inputs, group=group, **options)

    @functools.wraps(loss)
    def call(*inputs, group=NOT_GIVEN, strategy="auto", **options):
        if group is NOT_GIVEN:
            warn_of_several_ranks(loss.__name__)
            group = None
        if group is None:
            return checked(inputs, None, strategy, options)
        group = resolve(group)
        ranks = Ranks(group.group_name, strategy, described(loss.__name__, inputs, options))
        if torch.compiler.is_compiling():
            return checked(inputs, ranks, strategy, options)
        if is_transformed():
            # Inside a transform the ranks cannot exchange anything, not even an error.
            raise NotImplementedError(
                "torch.func's transforms and forward mode of a loss over the ranks of a group "
                "are not available: group must be None there"
            )
        with told(ranks):
            return checked(inputs, ranks, strategy, options)

    return call


@constant_result
def warn_of_several_ranks(name: str) -> None:
    """Warn once where several ranks are running and the loss is of this rank's batch alone."""
    global _warned
    if _warned or not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_world_size() > 1:
        _warned = True
        warn(
            f"{name} computes the loss of this rank's batch alone: the rows of the other "
            f"{dist.get_world_size() - 1} ranks are not among its negatives. Pass group='world' "
            "for the loss of the global batch, or group=None to keep this one without the warning"
        )


def described(name: str, inputs, options) -> str:
    """A call, as far as all ranks must agree on it: everything but values and rows of tensors."""
    shown = [_shown(x) for x in inputs]
    shown += [f"{key}={_shown(options[key])}" for key in sorted(options)]
    return f"{name}({', '.join(shown)})"


def _shown(x) -> str:
    if isinstance(x, torch.Tensor):
        if torch.compiler.is_compiling():
            # Sizes may be unknown. The ops compare dtypes and widths again.
            return "a tensor"
        if x.dim() == 0:
            return "a scalar"
        return f"[n] {x.dtype}" if x.dim() == 1 else f"[..., {x.shape[-1]}] {x.dtype}"
    if isinstance(x, (set, frozenset)):
        # Processes hash strings differently, so their sets have other orders.
        return f"{{{', '.join(sorted([_shown(y) for y in x]))}}}"
    if isinstance(x, (tuple, list)):
        return f"({', '.join([_shown(y) for y in x])})"
    return repr(x)
