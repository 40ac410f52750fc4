"""Leading dimensions become the groups ``G`` of the ops, and groups become dimensions again."""

from __future__ import annotations

import torch
from torch import Tensor


def group(x: Tensor | None) -> Tensor | None:
    """Rows ``[..., M, D]`` as ``[G, M, D]``. None stays None."""
    if x is None:
        return None
    return x.unsqueeze(0) if x.dim() == 2 else x.reshape(x.shape[:-2].numel(), *x.shape[-2:])


def group_vector(
    x: Tensor | None,  # broadcastable to [*lead, size]
    lead: torch.Size,
    size: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """One number per row, or per column, as ``[G, size]`` in `dtype`. None stays None."""
    return None if x is None else x.to(dtype).expand(*lead, size).reshape(lead.numel(), size)


def ungroup(
    x: Tensor,  # [G, size]
    lead: torch.Size,
) -> Tensor:
    """x as ``[*lead, size]``."""
    return x.reshape(*lead, x.shape[-1]) if lead else x.squeeze(0)
