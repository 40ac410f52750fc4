"""The options of the losses with one positive, checked."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .. import checks


class Options(NamedTuple):
    """What changes the cross entropy of a row (softmax.py); all 0: nothing."""

    label_smoothing: float = 0.0
    margin: float = 0.0
    hardness: float = 0.0
    tau_plus: float = 0.0


def check_options(label_smoothing, margin, hardness=0.0, tau_plus=0.0) -> Options:
    """The four as `Options`. Raises ValueError or TypeError naming the one that is wrong."""
    given = Options(label_smoothing, margin, hardness, tau_plus)
    if all(type(x) is float and x == 0.0 for x in given):
        return given
    checks.interval("label_smoothing", label_smoothing, 0, 1)
    checks.interval("margin", margin, -math.inf, math.inf)
    checks.interval("hardness", hardness, 0, math.inf)
    checks.interval("tau_plus", tau_plus, 0, 1, closed=False)
    if hardness and tau_plus:
        raise ValueError(
            f"hardness must be 0 where tau_plus is not (debiasing compares plain means), got {hardness} and {tau_plus}"
        )
    return given


def check_vectors(like: torch.Tensor, rows: int, columns: tuple, keys, weights, bias) -> None:
    """Of each row its weight ``[rows]``, of each column (or of each candidate of each row) its integer key and its bias."""
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
