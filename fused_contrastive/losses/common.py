"""What the losses share: reduction and metrics, the one-positive form, rows as the products read them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import checks, reference
from ..functions import Result, matrix_dtype


def finish(loss, reduction, metrics, result: Result, pos, scale=None, columns=False):
    """Reduced loss, with `metrics` the dictionary; `scale` turns positive logits into cosines."""
    loss = reference.reduce(loss, reduction)
    if not metrics:
        return loss
    pos = pos.detach()
    hit = hits(pos, result.row_max).to(loss.dtype).mean()
    if columns:
        hit = (hit + hits(pos, result.col_max).to(loss.dtype).mean()) / 2
    mean = (pos if scale is None else pos / scale.detach()).mean()
    return loss, {"accuracy": hit, "positive_similarity": mean}


def hits(pos: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where pos is at least the largest other logit; equal up to the rounding of differently ordered sums is equal."""
    slack = 16 * torch.finfo(pos.dtype).eps * torch.maximum(pos.abs(), other.abs())
    return (pos >= other) | (pos + slack >= other) & other.isfinite()


def one_positive(lse: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    """``softplus(lse - pos)``; NaN, as cross entropy, where a logit is infinite."""
    return F.softplus(lse - pos + 0 * (pos + lse.clamp_min(0)), threshold=40)


def two_sets(name_a, a, name_b, b, dim=2):
    checks.embeddings(name_a, a, dim=dim)
    checks.embeddings(name_b, b, dim=dim, like=(name_a, a))
    checks.same_shape(name_b, b, name_a, a)


def rounded(x: torch.Tensor, normalize: bool) -> torch.Tensor:
    """x, normalised in its accumulation dtype where asked, in the matrix dtype: what the products read."""
    if not normalize:
        return x.to(matrix_dtype(x))
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1).to(matrix_dtype(x))
