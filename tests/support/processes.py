"""This runs several processes on this machine, joined by gloo."""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from support.poison import poison

ENDED = "the process has ended"
"""What `Pool.run` returns for a rank that was expected to end."""


class Pool:
    """Ranks that wait for functions to run, with a group of the first 1, 2, ... of them.

    A call that takes too long ends all of them, and raises an error with every rank's stack. So
    does a call in which a rank ends, or in which a function raises an error. The next call starts
    new ones.
    """

    def __init__(self, size: int, patience: float = 60.0):
        self.size = size
        # The timeout of the groups, in seconds.
        self.patience = patience
        self._processes, self._folder = [], None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def run(self, world: int, function, *arguments, timeout=120.0, ends=(), poisoned=True) -> list:
        """Return what ``function(group, *arguments)`` returns on each of the first `world` ranks.

        Args:
            function: a function of a module, so that another process finds it.
            timeout: how many seconds it may take.
            ends: the ranks whose processes the function ends.
            poisoned: whether fresh memory is filled, as tests/support/poison.py says.
        """
        if not all(process.is_alive() for process in self._processes):
            self.stop()
        if not self._processes:
            self._start()
        job = pickle.dumps((world, function, arguments, poisoned))
        answers, deadline = {}, time.monotonic() + timeout
        waiting = dict(enumerate(self._connections[:world]))
        for connection in waiting.values():
            connection.send_bytes(job)
        while waiting:
            left = deadline - time.monotonic()
            ready = multiprocessing.connection.wait(waiting.values(), max(left, 0))
            if not ready:
                stacks = self._stacks()
                self.stop()
                pytest.fail(f"after {timeout} s ranks {list(waiting)} had not returned:\n{stacks}")
            for rank in [rank for rank, x in waiting.items() if x in ready]:
                try:
                    answers[rank] = pickle.loads(waiting.pop(rank).recv_bytes())
                except (EOFError, ConnectionResetError):
                    answers[rank] = (rank in ends, ENDED)
        errors = [f"rank {rank}: {x}" for rank, (fine, x) in sorted(answers.items()) if not fine]
        if errors or ends:
            self.stop()
        assert not errors, "\n".join(errors)
        return [answers[rank][1] for rank in range(world)]

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._processes = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        # The server imports torch once, and forks every rank of every test from there.
        multiprocessing.set_forkserver_preload(["torch.distributed", "fused_contrastive"])
        context = multiprocessing.get_context("forkserver")
        self._folder = tempfile.TemporaryDirectory()
        self._connections = []
        for rank in range(self.size):
            here, there = context.Pipe()
            arguments = rank, self.size, self._folder.name, self.patience, there
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)
        # A rank that ended while another one joins a group would end that one, too.
        for rank, connection in enumerate(self._connections):
            if not connection.poll(60):
                pytest.fail(f"after 60 s rank {rank} had not joined the groups:\n{self._stacks()}")
            connection.recv_bytes()

    def _stacks(self) -> str:
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.5)
        files = sorted(Path(self._folder.name).glob("*.stacks"))
        return "\n".join(f"{file.stem}:\n{file.read_text()}" for file in files)


def _serve(rank: int, size: int, folder: str, patience: float, connection) -> None:
    # The file must stay open for as long as a signal may come.
    with open(f"{folder}/rank {rank}.stacks", "w") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        torch.set_num_threads(1)
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        # The ranks start one after another. They join the groups together.
        dist.barrier()
        joined = {"timeout": datetime.timedelta(seconds=patience)}
        groups = {n: dist.new_group(range(n), **joined) for n in range(1, size + 1)}
        connection.send_bytes(b"joined")
        while True:
            try:
                world, function, arguments, poisoned = pickle.loads(connection.recv_bytes())
                answer = True, _call(groups[world], function, arguments, poisoned)
                connection.send_bytes(pickle.dumps(answer))
            except EOFError:
                return
            except BaseException:
                connection.send_bytes(pickle.dumps((False, traceback.format_exc())))


def _call(group, function, arguments, poisoned):
    with pytest.MonkeyPatch.context() as patch:
        if poisoned:
            poison(patch)
        torch.manual_seed(0)
        return function(group, *arguments)


def _on_one_rank(group, function, arguments):
    return function(dist.get_rank(group), dist.get_world_size(group), *arguments)


def on_ranks(world: int, function, *arguments) -> list:
    """Return what ``function(rank, world, *arguments)`` returns on each rank of new processes.

    The function must belong to a module, so that another process finds it.
    """
    with Pool(world) as pool:
        return pool.run(world, _on_one_rank, function, arguments, timeout=300, poisoned=False)
