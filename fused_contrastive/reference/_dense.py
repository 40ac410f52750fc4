"""The dense similarity matrix, its log-sum-exps and its sums of softplus."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..problem import Candidates


def similarity(
    a, b, scale, bias, key_a, key_b, kind, offset, stride, positive, normalize, columns, extrema
):
    """The dense form of the similarity family, in the accumulation dtype of `scale`.

    Args:
        a, b: ``[..., M, D]`` and ``[..., N, D]``. With b None, b is a.
        scale: ``[]``.
        bias: ``[..., N]``, or None.
        key_a, key_b: ``[..., M]`` and ``[..., N]``, for the kinds with keys.
        positive: the offset of the positive's column, or -1.

    Returns:
        ``(rows, cols, loss, pos, row_max, col_max)``: ``[..., M]`` each, but cols and col_max
        ``[..., N]``. What is not asked for is None.
    """
    x = F.normalize(a.to(scale.dtype), dim=-1) if normalize else a.to(scale.dtype)
    if b is None:
        y, key_b = x, key_a
    else:
        y = F.normalize(b.to(scale.dtype), dim=-1) if normalize else b.to(scale.dtype)
    s = scale * (x @ y.transpose(-1, -2))
    if bias is not None:
        s = s + bias.to(s.dtype).unsqueeze(-2)
    M, N = s.shape[-2:]
    keep = Candidates(kind, offset, stride, key_a, key_b).mask(M, N, scale.device)
    dense = s if keep is None else s.masked_fill(~keep, float("-inf"))
    rows = masked_logsumexp(dense, -1)
    cols: Any = masked_logsumexp(dense, -2) if columns else None
    pos = loss = None
    if positive >= 0:
        i = torch.arange(M, device=s.device)
        p = (i + positive) % max(N, 1)
        pos = s[..., i, p]
        loss = F.softplus(rows - pos, threshold=40)
        if columns:
            loss = (loss + F.softplus(cols[..., p] - pos, threshold=40)) / 2
    row_max = maximum(dense, -1) if extrema else None
    col_max = maximum(dense, -2) if extrema and columns else None
    return rows, cols, loss, pos, row_max, col_max


def sigmoid_sum(
    a, b, scale, row_bias, key_a, key_b, kind, offset, stride, positive, sign, normalize, extrema
):
    """The dense form of the sigmoid family, in the accumulation dtype of `scale`.

    Args:
        a, b: ``[..., M, D]`` and ``[..., N, D]``. With b None, b is a.
        scale: ``[]``.
        row_bias: ``[..., M]``, or None.
        key_a, key_b: ``[..., M]`` and ``[..., N]``, for the kinds with keys.
        positive: the offset of the positive's column, or -1.
        sign: 1 or -1, of the pairs that are not positive.

    Returns:
        ``(rows, pos, row_max)``: ``[..., M]`` each. What is not asked for is None.
    """
    x = F.normalize(a.to(scale.dtype), dim=-1) if normalize else a.to(scale.dtype)
    if b is None:
        y, key_b = x, key_a
    else:
        y = F.normalize(b.to(scale.dtype), dim=-1) if normalize else b.to(scale.dtype)
    logits = scale * (x @ y.transpose(-1, -2))
    if row_bias is not None:
        logits = logits + row_bias.unsqueeze(-1)
    M, N = logits.shape[-2:]
    keep = Candidates(kind, offset, stride, key_a, key_b).mask(M, N, scale.device)
    kept = sign * logits if keep is None else (sign * logits).masked_fill(~keep, float("-inf"))
    rows, pos = -F.logsigmoid(-kept).sum(-1), None
    if positive >= 0:
        i = torch.arange(M, device=a.device)
        pos = logits[..., i, (i + positive) % max(N, 1)]
        rows = rows - F.logsigmoid(sign * pos)
        pos = pos.detach()
    return rows, pos, maximum(kept, -1) if extrema else None


def maximum(s: torch.Tensor, dim: int) -> torch.Tensor:
    """The maximum over `dim`, detached; -inf over nothing. s has any shape."""
    if s.shape[dim] == 0:
        return s.detach().sum(dim) + float("-inf")
    return s.detach().amax(dim)


def masked_logsumexp(s: torch.Tensor, dim: int) -> torch.Tensor:
    """The logsumexp over `dim`, with value -inf and gradient 0 where everything is -inf.

    s has any shape.
    """
    empty = (s == float("-inf")).all(dim, keepdim=True)
    return s.masked_fill(empty, 0.0).logsumexp(dim).masked_fill(empty.squeeze(dim), float("-inf"))
