"""Rows and columns that do not count are not read, whatever they hold.

A row of weight 0 has a loss and a gradient of 0, but 0 times NaN is NaN. So such a row becomes
zeros where it is not finite, and so does every column that a bias of -inf removes. The gradients of
these zeros are 0, too.
"""

from __future__ import annotations

import math

import torch


def unread_rows(
    x: torch.Tensor,  # [M, ...]
    weights: torch.Tensor | None,  # [M]
) -> torch.Tensor:
    """x, with zeros in the rows of weight 0 that are not finite."""
    return x if weights is None else _without(x, (weights == 0) & ~_finite(x, weights.dim()))


def unread_columns(
    x: torch.Tensor,  # [..., N, D]
    bias: torch.Tensor | None,  # [..., N]
) -> torch.Tensor:
    """x, with zeros in the columns that are removed."""
    return x if bias is None else x.masked_fill((bias == -math.inf).unsqueeze(-1), 0.0)


def unread_pairs(
    first: torch.Tensor,  # [N, ...]
    second: torch.Tensor,  # [N, ...]
    weights: torch.Tensor | None,  # [N]
    *biases: torch.Tensor | None,  # [N]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both views, with zeros in the pairs that are not finite, of weight 0 and removed as columns.

    Here every row is a column of the others. Unless the bias of each direction removes it, they do
    read it.
    """
    if weights is None or any(bias is None for bias in biases):
        return first, second
    finite = _finite(first, 1) & _finite(second, 1)
    unread = (weights == 0) & ~finite
    for bias in biases:
        unread = unread & (bias == -math.inf)
    return _without(first, unread), _without(second, unread)


def _finite(x: torch.Tensor, dims: int) -> torch.Tensor:
    """Where the squares of what follows the first `dims` dimensions have a finite sum."""
    x = x.detach().flatten(dims) if x.dim() > dims else x.detach().unsqueeze(-1)
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(-1).isfinite()


def _without(x: torch.Tensor, unread: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(unread.view(*unread.shape, *[1] * (x.dim() - unread.dim())), 0.0)
