"""Collectives over a torch.distributed process group; without a group there is one rank. Nothing here is differentiable."""

from __future__ import annotations

import torch
import torch.distributed as dist


def check_group(group) -> None:
    """A process group of which this rank is a member, or None."""
    if group is None:
        return
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"group must be a torch.distributed.ProcessGroup that this rank belongs to, or None, got {type(group).__name__}"
        )


def ranks(group) -> int:
    return 1 if group is None else dist.get_world_size(group)


def add_over_ranks(x: torch.Tensor, group) -> torch.Tensor:
    """x, overwritten with its sum over the ranks."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def gather_rows(x: torch.Tensor, group) -> torch.Tensor:
    """The x ``[n, ...]`` of all ranks, of one shape, in rank order: ``[ranks * n, ...]``."""
    if group is None:
        return x
    everyone = x.new_empty(ranks(group) * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(everyone, x.contiguous(), group=group)
    return everyone
