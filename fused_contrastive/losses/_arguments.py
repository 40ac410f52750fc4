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
) -> None:
    """Check two floating tensors of one shape, dtype and device."""
    checks.embeddings(name_a, a, dim=dim)
    checks.embeddings(name_b, b, dim=dim, like=(name_a, a))
    checks.same_shape(name_b, b, name_a, a)


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
