"""The arguments that many losses share, checked."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .. import checks
from ..backends import dispatch
from ..backends._warnings import warn
from ..memory_bank import MemoryBank


class Options(NamedTuple):
    """What changes the cross entropy of a row. At 0 an option changes nothing.

    A new option is a field and its check here, its effect in `_cross_entropy`, and an argument of
    each loss that has it. The modules check whichever of these fields they are made with.

    `clip_loss` relies on options that are invariant under a shift of all logits by one number, for
    its `logit_bias` never enters the logits. All are, except `tau_plus`, which it does not have.
    Another option without this invariance needs care there.
    """

    label_smoothing: float = 0.0
    margin: float = 0.0
    hardness: float = 0.0
    tau_plus: float = 0.0

    def given(self) -> dict[str, float]:
        """The options that are not 0, by name, as the reference losses take them."""
        return {name: value for name, value in self._asdict().items() if value}


NOTHING = Options()
"""The options that change nothing."""


def check_options(**given: float) -> Options:
    """The given options as `Options`. A wrong one raises ValueError or TypeError that names it."""
    options = Options(**given)
    if {*map(type, options)} == {float} and options == NOTHING:
        return options
    checks.interval("label_smoothing", options.label_smoothing, 0, 1)
    checks.interval("margin", options.margin, -math.inf, math.inf)
    checks.interval("hardness", options.hardness, 0, math.inf)
    checks.interval("tau_plus", options.tau_plus, 0, 1, closed=False)
    if options.hardness and options.tau_plus:
        raise ValueError(
            "hardness must be 0 where tau_plus is not (debiasing compares plain means), "
            f"got {options.hardness} and {options.tau_plus}"
        )
    return options


def check_settings(**settings) -> None:
    """Check settings in the order given: `reduction` has three names, and every other is a flag."""
    for name, value in settings.items():
        if name == "reduction":
            checks.choice(name, value, checks.REDUCTIONS)
        else:
            checks.choice(name, value, (True, False))


def check_temperature(value, device: torch.device, name: str = "temperature") -> None:
    """Check a number or 0-d tensor that divides similarities.

    A negative number is legal, and warns. The value of a tensor is never read.
    """
    checks.number(name, value, device, divisor=True)
    if isinstance(value, (int, float)) and value < 0:
        warn(
            f"{name} is negative ({value}): the loss then pushes positives apart and pulls "
            "negatives together. A tensor gives the same without this warning"
        )


def check_negatives(x) -> None:
    """Say what was probably meant where `negative_keys` are no tensor."""
    if isinstance(x, MemoryBank):
        raise TypeError("negative_keys must be a tensor, got MemoryBank: pass bank.negatives")
    if isinstance(x, (int, float)):
        raise TypeError(
            f"negative_keys must be a tensor, got {type(x).__name__}: "
            "temperature is the fourth argument"
        )


def asks_for_eager(backend: str | None, group=None) -> bool:
    """Whether the call asks for the reference.

    Raises ValueError for a name that no backend has, and for the reference over a group's ranks.
    """
    if backend is not None:
        dispatch.check_name(backend)
    eager = dispatch.is_eager(backend)
    if eager and group is not None:
        raise ValueError(
            "backend='eager' is the dense form of one process: group must be None with it"
        )
    return eager


def two_sets(
    name_a: str,
    a,  # [..., N, D], of `dim` dimensions
    name_b: str,
    b,  # like a
    dim: int = 2,
    *,
    labels=None,
) -> None:
    """Check two floating tensors of one shape, dtype and device.

    With a pair of labels, one for the rows of each, they may have different numbers of rows.
    """
    checks.embeddings(name_a, a, dim=dim)
    checks.embeddings(name_b, b, dim=dim, like=(name_a, a))
    if not isinstance(labels, tuple):
        checks.same_shape(name_b, b, name_a, a)
    elif a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name_b} must have shape [N, {a.shape[1]}] as {name_a}, got {tuple(b.shape)}"
        )


def check_labels(
    a: torch.Tensor,  # [M, D]
    b: torch.Tensor,  # [N, D]
    labels,  # [N], or a pair of [M] and [N]
    ignore_index,
    weights=None,  # [M], or with both directions a pair of [M] and [N]
    *,
    both: bool,
    **others,
) -> tuple[tuple, tuple]:
    """Check labels that name the positives; return those of both sets, and the weights of both.

    The `others` are options that do not go with labels.
    """
    given = [name for name, x in others.items() if x is not None]
    if given:
        raise ValueError(
            f"{given[0]} must not be given with labels: they go with weights, ignore_index, "
            "reduction and metrics only"
        )
    pair = labels if isinstance(labels, tuple) else (labels, labels)
    if len(pair) != 2:
        raise ValueError(f"labels must be a tensor or a pair of tensors, got {len(pair)}")
    for x, key in zip((a, b), pair, strict=True):
        checks.keys("labels", key, (x.shape[0],), a.device)
    # Labels of a narrow dtype would be compared with an ignore_index that has wrapped around.
    pair = tuple(key.long() for key in pair)
    check_ignore_index(ignore_index)
    if not both:
        check_vectors(a, a.shape[0], (), weights=weights)
        return pair, (weights,)
    weights = weights if isinstance(weights, tuple) else (weights, weights)
    if len(weights) != 2:
        raise ValueError(f"weights must be a tensor or a pair of tensors, got {len(weights)}")
    for x, w in zip((a, b), weights, strict=True):
        check_vectors(a, x.shape[0], (), weights=w)
    return pair, weights


def check_ignore_index(ignore_index, labels=True) -> None:
    """Check a label that is to be ignored; without labels there is none."""
    checks.index("ignore_index", ignore_index)
    if ignore_index is not None and labels is None:
        raise ValueError("ignore_index must be None without labels")


def one_loss_each(a: torch.Tensor, b: torch.Tensor, reduction: str) -> None:
    """Check that two directions have as many losses, where all of them are asked for."""
    if reduction == "none" and a.shape[0] != b.shape[0]:
        raise ValueError(
            "reduction must be 'mean' or 'sum' for both directions of sets of "
            f"{a.shape[0]} and {b.shape[0]} rows: info_nce_loss has the losses of one direction"
        )


def check_vectors(
    like: torch.Tensor,  # a tensor on the device of the call
    rows: int,
    columns: tuple,  # (N,), or (M, N) where every row has candidates of its own
    keys=None,  # integers of the shape `columns`
    weights=None,  # [rows]
    bias=None,  # of the shape `columns`
) -> None:
    """Check a weight for each row, and an integer key and a bias for each column."""
    if keys is not None:
        checks.keys("keys", keys, columns, like.device)
        _shaped("keys", keys, columns)
    for name, x, shape in (("weights", weights, (rows,)), ("bias", bias, columns)):
        if x is None:
            continue
        checks.embeddings(name, x)
        _shaped(name, x, shape)
        if x.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, got {x.device}")


def _shaped(name, x, shape):
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {tuple(x.shape)}")
