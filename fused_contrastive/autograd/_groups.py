"""Leading dimensions become the groups ``G`` of the ops, and groups become dimensions again."""

from __future__ import annotations

import torch
from torch import Tensor


def group(x: Tensor | None) -> Tensor | None:
    """Rows ``[..., M, D]`` as ``[G, M, D]``. None stays None."""
    return None if x is None else x.reshape(-1, *x.shape[-2:])


def group_vector(
    x: Tensor | None,  # broadcastable to [*lead, size]
    lead: torch.Size,
    size: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """One number per row, or per column, as ``[G, size]`` in `dtype`. None stays None."""
    return None if x is None else x.to(dtype).expand(*lead, size).reshape(-1, size)


def ungroup(
    x: Tensor,  # [G, size]
    lead: torch.Size,
    present: bool,
) -> Tensor | None:
    """x as ``[*lead, size]``, or None where it is not `present`."""
    return x.reshape(*lead, x.shape[-1]) if present else None
