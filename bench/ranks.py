"""Ranks of a process group on this machine, which measure the losses on request.

A rank is a process of one thread, joined to the others by gloo. The ranks of a `Pool` wait while
other processes measure, so that several pools can take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from . import memory
from .losses import LOSSES, Size, make_inputs

WRITTEN = Path("/proc/self/io")
SMALL = 256
"""The rows of a step that warms a process up before its memory is measured."""


def size_of_rank(loss: str, size: Size, world: int) -> Size:
    """Returns the size of one rank's share. Raises ValueError where the ranks' would differ."""
    per_row = 2 if loss == "nt_xent" else 1
    if size.N % (world * per_row):
        raise ValueError(f"{loss} {size}: {size.N} rows are not the same number on {world} ranks")
    return size._replace(N=size.N // world)


def written_bytes() -> int | None:
    """Returns the bytes that this process has written so far, to sockets as well as to files.

    It is None where the system does not count them.
    """
    if not WRITTEN.exists():
        return None
    return next(
        int(line.split()[1]) for line in WRITTEN.read_text().splitlines() if line[:5] == "wchar"
    )


class Rank:
    """One rank, or the process that has no group where `strategy` is None."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world
        self.inputs, self.call = [], None

    def prepare(self, loss: str, size: Size, strategy: str | None, whole: bool = False) -> None:
        """Makes the inputs: this rank's share, or with `whole` those of all ranks."""
        options = {"group": None}
        if strategy is not None:
            options = {"group": "world", "strategy": strategy}
        share = size if whole else size_of_rank(loss, size, self.world)
        self.inputs = make_inputs(
            loss, share, torch.float32, torch.device("cpu"), seed=0 if whole else self.rank
        )
        self.call = lambda: LOSSES[loss].call(*self.inputs, **options)

    def _step(self) -> tuple[float, float]:
        start = time.perf_counter()
        loss = self.call()
        middle = time.perf_counter()
        torch.autograd.grad(loss, self.inputs)
        return middle - start, time.perf_counter() - middle

    def step(self) -> dict[str, float]:
        """Returns the seconds of one step, and those that this process had a core for."""
        if self.world > 1:
            dist.barrier()
        before = time.process_time()
        forward, backward = self._step()
        return {"forward": forward, "backward": backward, "core": time.process_time() - before}

    def observe(self) -> dict[str, int | None]:
        """Returns the bytes that one step sends, and its peak memory above inputs and gradients.

        The memory is the growth of the resident set. It counts whatever the step allocates: what
        the kernels and the exchange allocate, too.
        """
        measurable = memory.unsupported() is None
        memory.trim()
        if self.world > 1:
            dist.barrier()
        sent, resident = written_bytes(), 0
        if measurable:
            resident = memory.resident("VmRSS")
            memory.reset_peak()
        self._step()
        growth = memory.resident("VmHWM") - resident if measurable else None
        if self.world > 1:
            dist.barrier()
        gradients = sum(x.numel() * x.element_size() for x in self.inputs)
        return {
            "sent": None if sent is None else written_bytes() - sent,
            "peak": max(0, growth - gradients) if measurable else None,
        }


def _serve(rank: int, world: int, store: str, pipe) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    server = Rank(rank, world)
    while (request := pipe.recv()) is not None:
        try:
            name, arguments = request
            pipe.send((getattr(server, name)(*arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
    dist.destroy_process_group()


class Pool:
    """As many ranks as `world`. Use it in a ``with`` statement."""

    def __init__(self, world: int):
        self.world, self.pipes, self.processes = world, [], []
        self.folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Pool:
        context = multiprocessing.get_context("spawn")
        store = os.path.join(self.folder.name, "store")
        for rank in range(self.world):
            here, there = context.Pipe()
            arguments = rank, self.world, store, there
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        return self

    def __exit__(self, kind, *_) -> None:
        for pipe in self.pipes:
            if kind is None:
                pipe.send(None)
        for process in self.processes:
            if kind is not None:
                process.kill()
            process.join()
        self.folder.cleanup()

    def ask(self, request: str, *arguments, ranks: int | None = None) -> list:
        """Returns every rank's answer to a request: the name of a method of `Rank`.

        Args:
            ranks: only the first ranks are asked.

        Raises:
            RuntimeError: a rank failed. The text is its traceback.
        """
        asked = self.pipes[:ranks]
        for pipe in asked:
            pipe.send((request, arguments))
        answers = [pipe.recv() for pipe in asked]
        for rank, (_, error) in enumerate(answers):
            if error is not None:
                raise RuntimeError(f"rank {rank} of {self.world}:\n{error}")
        return [answer for answer, _ in answers]
