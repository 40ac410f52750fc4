"""A loss over the ranks of a process group: which ranks, what they agree on, and its reduction.

The convention of every loss: with W ranks and N rows in all, a rank returns ``W / N`` times the sum
of the losses of its own rows, and its inputs receive the gradient of the sum of what all ranks
return. The mean over the ranks, which DistributedDataParallel and FSDP take of gradients, is then
exactly the mean over all rows, and its gradient.
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.distributed as dist

from .. import checks
from .._torch_internals import constant_result
from ..distributed.groups import STRATEGIES, Ranks, agreements, refuse, resolve


class NotGiven:
    """The default of `group`. It means None, and warns once where several ranks are running."""

    def __repr__(self) -> str:
        return "not given"

    def __reduce__(self) -> str:
        # Copies and pickles are this very object.
        return "NOT_GIVEN"


NOT_GIVEN = NotGiven()

_warned = False


def over_ranks(loss=None, *, rows: int = 0):
    """Let a loss function take `group` and `strategy`.

    In the dimension `rows` each rank has a size of its own.

    The function itself is called with ``group=None``, or with the `Ranks` of the group. Where it
    raises an error, the other ranks are told, so that they raise one, too.
    """

    if loss is None:
        return functools.partial(over_ranks, rows=rows)

    @functools.wraps(loss)
    def call(*inputs, group=NOT_GIVEN, strategy="auto", **options):
        if strategy not in STRATEGIES:
            checks.choice("strategy", strategy, STRATEGIES)
        if group is NOT_GIVEN:
            warn_of_several_ranks(loss.__name__)
            group = None
        if group is None:
            return loss(*inputs, group=None, **options)
        group = resolve(group)
        ranks = Ranks(group.group_name, strategy, described(loss.__name__, inputs, options, rows))
        if torch.compiler.is_compiling():
            return loss(*inputs, group=ranks, **options)
        before = agreements()
        try:
            return loss(*inputs, group=ranks, **options)
        except Exception as error:
            # The others wait for this rank only until they have agreed.
            if agreements() == before:
                refuse(ranks, error)
            raise

    return call


@constant_result
def warn_of_several_ranks(name: str) -> None:
    """Warn once where several ranks are running and the loss is of this rank's batch alone."""
    global _warned
    if _warned or not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_world_size() > 1:
        _warned = True
        warnings.warn(
            f"{name} computes the loss of this rank's batch alone: the rows of the other "
            f"{dist.get_world_size() - 1} ranks are not among its negatives. Pass group='world' "
            "for the loss of the global batch, or group=None to keep this one without the warning",
            stacklevel=4,
        )


def described(name: str, inputs, options, rows: int = 0) -> str:
    """A call, as far as all ranks must agree on it: everything but values and rows of tensors."""
    shown = [_shown(x, rows) for x in inputs]
    shown += [f"{key}={_shown(options[key], rows)}" for key in sorted(options)]
    return f"{name}({', '.join(shown)})"


def _shown(x, rows: int) -> str:
    if isinstance(x, torch.Tensor):
        if x.dim() == 0:
            return "a scalar"
        sizes = [str(size) for size in x.shape]
        if -x.dim() <= rows < x.dim():
            sizes[rows] = "n"
        return f"[{', '.join(sizes)}] {x.dtype}"
    if isinstance(x, (tuple, list)):
        return f"({', '.join([_shown(y, rows) for y in x])})"
    return repr(x)
