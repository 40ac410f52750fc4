"""Collectives over a torch.distributed process group. Without a group there is one rank.

Nothing here is differentiable.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

# torch 2.13 has new names for these two, and warns about the old ones.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def ranks(group) -> int:
    """How many ranks the group has."""
    return 1 if group is None else dist.get_world_size(group)


def add_over_ranks(x: torch.Tensor, group) -> torch.Tensor:
    """Overwrite x, of any shape, with its sum over the ranks, and return it."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def gather_rows(x: torch.Tensor, group) -> torch.Tensor:
    """The x ``[n, ...]`` of all ranks in rank order, ``[ranks * n, ...]``.

    The x of all ranks have the same shape.
    """
    if group is None:
        return x
    everyone = x.new_empty(ranks(group) * x.shape[0], *x.shape[1:])
    all_gather_single(everyone, x.contiguous(), group=group)
    return everyone
