"""Several processes on this machine, joined by gloo."""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _worker(rank, world, folder, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    try:
        torch.save(function(rank, world, *arguments), os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def on_ranks(world: int, function, *arguments) -> list:
    """What ``function(rank, world, *arguments)`` returns on each rank; `function` is one of a module's."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (world, folder, function, arguments), nprocs=world)
        return [
            torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False)
            for rank in range(world)
        ]
