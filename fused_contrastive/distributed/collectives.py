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


def gather_rows(x: torch.Tensor, group, rows: list[int] | None = None) -> torch.Tensor:
    """The x ``[n, ...]`` of all ranks in rank order, ``[all rows, ...]``.

    `rows` has the n of each rank. With None all ranks have the same.
    """
    if group is None:
        return x
    longest = x.shape[0] if rows is None else max(rows)
    if x.shape[0] < longest:
        x = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])])
    everyone = x.new_empty(ranks(group) * longest, *x.shape[1:])
    if longest:
        all_gather_single(everyone, x.contiguous(), group=group)
    if rows is None or min(rows) == longest:
        return everyone
    parts = zip(everyone.split(longest), rows, strict=True)
    return torch.cat([part[:n] for part, n in parts])
