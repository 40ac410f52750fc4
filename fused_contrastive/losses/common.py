"""What the losses share: checks of their arguments, reduction and metrics, rows as the products read them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import checks, reference
from ..functions import matrix_dtype


class Options(NamedTuple):
    """What changes the cross entropy of a row (softmax.py); all 0: nothing."""

    label_smoothing: float = 0.0
    margin: float = 0.0
    hardness: float = 0.0
    tau_plus: float = 0.0


class Outcome(NamedTuple):
    """What `finish` reduces: the losses, the positives' logits, what makes these similarities (None: nothing), and, for the metrics, of
    each direction the positives' logits beside the largest of the others, with biases but without margin and hardness."""

    loss: torch.Tensor
    pos: torch.Tensor
    unit: torch.Tensor | None
    ranks: tuple[tuple[torch.Tensor, torch.Tensor | None], ...]


def finish(outcome: Outcome, reduction: str, metrics: bool = False, weights: torch.Tensor | None = None):
    """Reduced loss, with `metrics` the dictionary."""
    loss = reference.reduce(outcome.loss, reduction, weights)
    if not metrics:
        return loss

    def mean(x):
        return reference.reduce(x.to(loss.dtype), "mean", None if weights is None else weights.detach())

    pos = outcome.pos.detach()
    shares = [mean(hits(p.detach(), other)) for p, other in outcome.ranks]
    similarity = mean(pos if outcome.unit is None else pos / outcome.unit.detach())
    return loss, {"accuracy": sum(shares) / len(shares), "positive_similarity": similarity}


def hits(pos: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where pos is at least the largest other logit; equal up to the rounding of differently ordered sums is equal."""
    slack = 16 * torch.finfo(pos.dtype).eps * torch.maximum(pos.abs(), other.abs())
    return (pos >= other) | (pos + slack >= other) & other.isfinite()


def two_sets(name_a, a, name_b, b, dim=2):
    checks.embeddings(name_a, a, dim=dim)
    checks.embeddings(name_b, b, dim=dim, like=(name_a, a))
    checks.same_shape(name_b, b, name_a, a)


def check_options(label_smoothing, margin, hardness=0.0, tau_plus=0.0) -> Options:
    """The four as `Options`. Raises ValueError or TypeError naming the one that is wrong."""
    checks.interval("label_smoothing", label_smoothing, 0, 1)
    checks.interval("margin", margin, -math.inf, math.inf)
    checks.interval("hardness", hardness, 0, math.inf)
    checks.interval("tau_plus", tau_plus, 0, 1, closed=False)
    if hardness and tau_plus:
        raise ValueError(
            f"hardness must be 0 where tau_plus is not (debiasing compares plain means), got {hardness} and {tau_plus}"
        )
    return Options(label_smoothing, margin, hardness, tau_plus)


def check_vectors(like: torch.Tensor, rows: int, columns: tuple, keys, weights, bias, bias_name="bias") -> None:
    """Of each row its weight ``[rows]``, of each column (or of each candidate of each row) its integer key and its bias."""
    if keys is not None:
        checks.keys("keys", keys, columns, like.device)
        _shaped("keys", keys, columns)
    for name, x, shape in (("weights", weights, (rows,)), (bias_name, bias, columns)):
        if x is None:
            continue
        checks.embeddings(name, x)
        _shaped(name, x, shape)
        if x.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, got {x.device}")


def _shaped(name, x, shape):
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {tuple(x.shape)}")


def rounded(x: torch.Tensor, normalize: bool) -> torch.Tensor:
    """x, normalised in its accumulation dtype where asked, in the matrix dtype: what the products read."""
    if not normalize:
        return x.to(matrix_dtype(x))
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1).to(matrix_dtype(x))
