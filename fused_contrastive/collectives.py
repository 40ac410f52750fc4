"""Collectives over a torch.distributed process group. Without a group there is one rank.

Nothing here is differentiable.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


def check_group(group) -> None:
    """Check that `group` is None, or a process group of which this rank is a member."""
    if group is None:
        return
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            "group must be a torch.distributed.ProcessGroup that this rank belongs to, or None, "
            f"got {type(group).__name__}"
        )


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
    dist.all_gather_into_tensor(everyone, x.contiguous(), group=group)
    return everyone
