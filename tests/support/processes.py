"""This runs several processes on this machine, joined by gloo."""

from __future__ import annotations

import multiprocessing
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
    """Return what ``function(rank, world, *arguments)`` returns on each rank.

    The function must belong to a module, so that another process finds it.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The server imports torch once, and forks every rank of every test from there.
        multiprocessing.set_forkserver_preload(["torch.distributed", "fused_contrastive"])
        ranks = (world, folder, function, arguments)
        mp.start_processes(_worker, ranks, nprocs=world, start_method="forkserver")
        return [
            torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False)
            for rank in range(world)
        ]
