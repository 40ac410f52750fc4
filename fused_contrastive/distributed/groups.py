"""Which process group a call means, and what its ranks agree on before they exchange anything.

Sizes and options are compared on the host, over gloo, so that a CUDA stream is never waited for.
A rank that disagrees, or that has raised an error, is therefore an error on every rank.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .._torch_internals import constant_result, group_timeout, group_with_name
from .collectives import all_gather_single

STRATEGIES = ("auto", "gather", "ring")

AGREES, RAISED = 0, 1


class Ranks(NamedTuple):
    """The ranks that a loss is computed over. It travels through an op as one string."""

    group: str  # the name of the process group
    strategy: str
    call: str  # the call and its options, which must be the same on all ranks

    def encode(self) -> str:
        """The string that `decode` takes."""
        return "|".join(self)

    @classmethod
    def decode(cls, text: str) -> Ranks:
        """The ranks that `encode` was called on."""
        return cls(*text.split("|", 2))

    @property
    def process_group(self):
        """The process group itself."""
        return group_with_name(self.group)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return _size(self.group)

    @property
    def rank(self) -> int:
        """The place of this process among them."""
        return dist.get_rank(self.process_group)


@constant_result
def _size(name: str) -> int:
    return dist.get_world_size(group_with_name(name))


def resolve(group) -> Any:
    """The process group that an argument `group` means; None for None.

    Args:
        group: a process group that this rank belongs to, a one-dimensional DeviceMesh, or "world".

    Raises:
        ValueError, TypeError: it is none of these; the error says what it is.
    """
    if group is None:
        return None
    if dist.is_available():
        if isinstance(group, dist.ProcessGroup):
            return group
        if isinstance(group, str) and group == "world":
            if not dist.is_initialized():
                raise ValueError(
                    "group='world' needs torch.distributed.init_process_group to be called first"
                )
            return dist.group.WORLD
        if isinstance(group, dist.device_mesh.DeviceMesh):
            if group.ndim != 1:
                raise ValueError(
                    "group must be a one-dimensional DeviceMesh, such as mesh['data'], "
                    f"got {group.ndim} dimensions"
                )
            return group.get_group()
    raise TypeError(
        "group must be a torch.distributed.ProcessGroup that this rank belongs to, "
        "a one-dimensional DeviceMesh, 'world' or None, "
        f"got {repr(group) if isinstance(group, str) else type(group).__name__}"
    )


_HOST_GROUPS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""The gloo group beside each group; None where the group serves tensors on the CPU itself.

Groups are not kept alive. `destroy_process_group` has to end their threads, for a thread that lives
on can bring down the interpreter at its exit.
"""


def host_group(group):
    """The group itself where it serves tensors on the CPU, else a gloo group of the same ranks.

    All ranks of the group call this at the same time.
    """
    if group not in _HOST_GROUPS:
        serves_cpu = "cpu:" in dist.get_backend_config(group)
        _HOST_GROUPS[group] = None if serves_cpu else _gloo_beside(group)
    host = _HOST_GROUPS[group]
    return group if host is None else host


def _gloo_beside(group):
    # Only the members of the group take part, for the others may not call at all.
    return dist.new_group(
        dist.get_process_group_ranks(group),
        backend="gloo",
        timeout=group_timeout(group),
        use_local_synchronization=True,
    )


_agreements = 0


def agreements() -> int:
    """How often this process has begun to agree with others."""
    return _agreements


def digest(text: str) -> int:
    """A number of 62 bits that differs where texts differ."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 2


def _exchange(group, numbers: list[int], call: str) -> list[list[int]]:
    """The numbers of all ranks, in rank order."""
    own = torch.tensor(numbers, dtype=torch.int64)
    everyone = own.new_empty(dist.get_world_size(group) * len(own))
    try:
        all_gather_single(everyone, own, group=host_group(group))
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {dist.get_rank(group)} waited in vain for the other ranks of its group to call "
            f"{call.partition('(')[0]} with group=; one of them has ended, is late, or did not "
            f"call: {error}"
        ) from error
    return everyone.view(-1, len(own)).tolist()


def agree(ranks: Ranks, rows: int, columns: int, call: str = "") -> list[tuple[int, int]]:
    """The rows and columns of every rank, once all ranks are found to make the same call.

    Args:
        rows, columns: how many this rank has.
        call: what has to be the same on all ranks beside ``ranks.call``.

    Raises:
        RuntimeError, ValueError: a rank has raised an error, or makes another call. All ranks raise
            it, and it says which rank does what.
    """
    global _agreements
    _agreements += 1
    group, call = ranks.process_group, f"{ranks.call}, strategy={ranks.strategy!r} [{call}]"
    if dist.get_world_size(group) == 1:
        return [(rows, columns)]
    records = _exchange(group, [AGREES, digest(call), rows, columns], ranks.call)
    if all(status == AGREES and number == records[0][1] for status, number, *_ in records):
        return [(m, n) for _, _, m, n in records]
    texts = _texts(group, call)
    raised = [rank for rank, (status, *_) in enumerate(records) if status == RAISED]
    if raised:
        found = "; ".join(f"rank {rank} raised {texts[rank]}" for rank in raised)
        raise RuntimeError(f"{ranks.call.partition('(')[0]} over the ranks of a group: {found}")
    same: dict[str, list[str]] = {}
    for rank, text in enumerate(texts):
        same.setdefault(text, []).append(str(rank))
    lines = (f"  rank {', '.join(members)}: {text}" for text, members in same.items())
    raise ValueError("\n".join(["the ranks of the group must make the same call, got", *lines]))


def refuse(ranks: Ranks, error: Exception) -> None:
    """Tell the other ranks, which are about to agree, that this one has raised an error."""
    group = ranks.process_group
    if dist.get_world_size(group) > 1:
        _exchange(group, [RAISED, 0, 0, 0], ranks.call)
        _texts(group, f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def told(ranks: Ranks | None):
    """Tell the other ranks of an error inside the ``with`` block, while they wait to agree."""
    before = agreements()
    try:
        yield
    except Exception as error:
        if ranks is not None and agreements() == before:
            refuse(ranks, error)
        raise


def _texts(group, text: str) -> list[str]:
    texts = [""] * dist.get_world_size(group)
    dist.all_gather_object(texts, text, group=host_group(group))
    return texts
