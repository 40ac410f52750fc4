"""The dense similarity matrix, its log-sum-exps, and what the losses share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..problem import KEYED, candidate_mask, resolve_offset


def similarity(
    a, b, scale, bias, key_a, key_b, kind, offset, stride, positive, normalize, columns, extrema
):
    """Dense form of functions.similarity, in the accumulation dtype of `scale`: ``(rows, cols, loss, pos, row_max, col_max)``."""
    x = F.normalize(a.to(scale.dtype), dim=-1) if normalize else a.to(scale.dtype)
    y = (
        x
        if b is None
        else (F.normalize(b.to(scale.dtype), dim=-1) if normalize else b.to(scale.dtype))
    )
    key_b = key_a if b is None else key_b
    s = scale * (x @ y.transpose(-1, -2))
    if bias is not None:
        s = s + bias.to(s.dtype).unsqueeze(-2)
    M, N = s.shape[-2:]
    i, j = torch.arange(M, device=s.device), torch.arange(N, device=s.device)
    keep = candidate_mask(kind, offset, stride, i, j, key_a if kind in KEYED else None, key_b)
    dense = s if keep is None else s.masked_fill(~keep, float("-inf"))
    rows, cols = masked_logsumexp(dense, -1), masked_logsumexp(dense, -2) if columns else None
    pos = loss = None
    if positive >= 0:
        p = (i + positive) % max(N, 1)
        pos = s[..., i, p]
        loss = F.softplus(rows - pos, threshold=40)
        if columns:
            loss = (loss + F.softplus(cols[..., p] - pos, threshold=40)) / 2
    row_max = maximum(dense, -1) if extrema else None
    col_max = maximum(dense, -2) if extrema and columns else None
    return rows, cols, loss, pos, row_max, col_max


def maximum(s: torch.Tensor, dim: int) -> torch.Tensor:
    """Maximum over `dim`, detached; −inf over nothing."""
    if s.shape[dim] == 0:
        return s.detach().sum(dim) + float("-inf")
    return s.detach().amax(dim)


def masked_logsumexp(s: torch.Tensor, dim: int) -> torch.Tensor:
    """logsumexp with value −inf and gradient 0 where everything is −inf."""
    empty = (s == float("-inf")).all(dim, keepdim=True)
    return s.masked_fill(empty, 0.0).logsumexp(dim).masked_fill(empty.squeeze(dim), float("-inf"))


def similarity_logsumexp(
    a, b=None, *, scale=1.0, bias=None, normalize=False, candidates="all", self_offset=None, pair_stride=None,
    key_a=None, key_b=None, return_columns=False,
):  # fmt: skip
    """Dense log-sum-exp of ``scale * a @ b.T + bias`` over the candidates, in the dtype of `a`."""
    kind, offset = resolve_offset(candidates, self_offset, b is None)
    if not isinstance(scale, torch.Tensor):
        scale = torch.full((), scale, dtype=a.dtype, device=a.device)
    scale = scale.to(a.device, a.dtype)
    result = similarity(
        a,
        b,
        scale,
        bias,
        key_a,
        key_b,
        kind,
        offset,
        pair_stride or 1,
        -1,
        normalize,
        return_columns,
        False,
    )
    return result[:2] if return_columns else result[0]


def reduce(loss: torch.Tensor, reduction: str, weights: torch.Tensor | None = None) -> torch.Tensor:
    """none, mean (NaN over nothing) or sum (0 over nothing) of the per-row losses; with weights ``w l``, ``Σ w l / Σ w`` or ``Σ w l``, where a
    weight of 0 leaves out a loss that is not finite."""
    if weights is not None:
        weights = weights.to(loss.dtype)
        loss = weights * loss.masked_fill((weights == 0) & ~loss.isfinite(), 0.0)
        if reduction == "mean":
            return loss.sum() / weights.sum()
    return loss if reduction == "none" else getattr(loss, reduction)()


def with_metrics(
    loss, reduction, logits, target, metrics, similarity_of=None, *, plain=None, weights=None
):
    """``loss`` reduced, and with `metrics` the dictionary of top-1 accuracy and mean positive similarity, that of the positives in `plain`
    (None: `logits`)."""
    loss = reduce(loss, reduction, weights)
    if not metrics:
        return loss
    with torch.no_grad():
        target = target.unsqueeze(-1)
        positive, plain = (
            x.gather(-1, target).squeeze(-1) for x in (logits, logits if plain is None else plain)
        )
        hit = (positive >= maximum(logits.scatter(-1, target, float("-inf")), -1)).to(loss.dtype)
        similarity = plain if similarity_of is None else similarity_of(plain)
        accuracy, mean = (
            reduce(hit, "mean", weights),
            reduce(similarity.to(loss.dtype), "mean", weights),
        )
    return loss, {"accuracy": accuracy, "positive_similarity": mean}


def both_directions(forward, backward, reduction, target, metrics, plain=None, weights=None):
    """The mean of two directions' ``(loss, logits)`` and metrics."""
    loss = (forward[0] + backward[0]) / 2
    one = with_metrics(loss, reduction, forward[1], target, metrics, plain=plain, weights=weights)
    if not metrics:
        return one
    two = with_metrics(
        backward[0], reduction, backward[1], target, True, plain=plain, weights=weights
    )
    return one[0], {name: (one[1][name] + two[1][name]) / 2 for name in one[1]}
