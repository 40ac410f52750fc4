"""Every rank's columns meet every rank's rows, and what is found out about them travels home.

A rank computes its rows against its own columns, then against those of the ranks after it. There
are two strategies with one interface. `gather` has all columns at once. In a ring each rank passes
the columns on to the rank before it, a part of a shard at a time, so that its memory does not grow
with the number of ranks. What is sent overlaps with what is computed.

Where rows and columns are one set, a pair of shards is computed once, by one of its two ranks. A
rank then meets only the half of the ranks that come after it. With an even number of ranks the last
shard of this half would be met from both sides, so each side takes half of the rectangle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import all_gather_single

GATHERED_BYTES = 1 << 28
"""``strategy="auto"`` gathers where a rank's gathered columns take at most this many bytes."""

PART = 8192
"""The rows of a shard that travel around the ring together."""


class Visit(NamedTuple):
    """What meets: these rows of this rank, and columns that the call comes with."""

    own: bool  # whether the columns are this rank's own, all of them
    rows: slice

    def parts(self, M: int) -> list[Visit]:
        """The same visit with some of the rows at a time, of M that this rank has.

        What a block allocates for its rows is then no larger than for the columns of a ring.
        """
        first, last, _ = self.rows.indices(M)
        starts = range(first, max(last, first + 1), PART)
        return [self._replace(rows=slice(i, min(i + PART, last))) for i in starts]


class Result(NamedTuple):
    """How the results about the columns are put together, one entry for each tensor."""

    how: str  # "sum", "lse" or "max"
    width: int  # of the last dimension
    dtype: torch.dtype

    @property
    def nothing(self) -> float:
        """The value that changes nothing."""
        return 0.0 if self.how == "sum" else float("-inf")

    def merge(self, x: Tensor, y: Tensor) -> None:
        """Put both together, in x."""
        if self.how == "sum":
            x.add_(y)
        elif self.how == "lse":
            torch.logaddexp(x, y, out=x)
        else:
            torch.maximum(x, y, out=x)


class Exchange(NamedTuple):
    """The columns ``[G, n, ...]`` of each rank, and how they reach the other ranks."""

    group: dist.ProcessGroup
    strategy: str
    sizes: list[int]  # the columns of each rank
    half: bool  # rows and columns are one set
    results: tuple[Result, ...]

    def run(
        self,
        columns: list[Tensor],  # [G, n, ...] each
        compute: Callable[[Visit, list[Tensor]], list[Tensor]],
    ) -> list[Tensor]:
        """The results ``[G, n, width]`` about this rank's columns, from all ranks.

        Args:
            columns: what a rank has to know of columns.
            compute: computes one visit and returns the results about the columns that it is given.
        """
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        self = self._replace(strategy=self.chosen(columns))
        if world == 1:
            return compute(Visit(True, slice(None)), columns)
        engine = _gather if self.strategy == "gather" else _ring
        return engine(self, rank, world, columns, compute)

    def chosen(self, columns: list[Tensor]) -> str:
        """The strategy in place of "auto". All ranks choose alike."""
        if self.strategy != "auto":
            return self.strategy
        widths = [x[:, :1].numel() * x.element_size() for x in columns]
        G = columns[0].shape[0]
        widths += [G * r.width * r.dtype.itemsize for r in self.results]
        return "gather" if sum(self.sizes) * sum(widths) <= GATHERED_BYTES else "ring"

    def steps(self, world: int) -> int:
        """How many ranks a rank meets."""
        return world // 2 if self.half else world - 1

    def part(self, rank: int, other: int, step: int, world: int) -> tuple[slice, slice]:
        """The rows of this rank, and the columns of the other one, that meet in a step."""
        if not self.half or 2 * step != world:
            return slice(0, None), slice(0, self.sizes[other])
        lower = min(rank, other)
        middle = (self.sizes[lower] + 1) // 2
        if rank == lower:
            return slice(0, middle), slice(0, self.sizes[other])
        return slice(0, None), slice(middle, self.sizes[lower])


def padded(x: Tensor, start: int, size: int) -> Tensor:
    """The columns ``[G, size, ...]`` of x from `start` on, with anything where it has no more."""
    part = x[:, start : start + size]
    if part.shape[1] == size:
        return part.contiguous()
    buffer = x.new_zeros(x.shape[0], size, *x.shape[2:])
    buffer[:, : part.shape[1]] = part
    return buffer


class _Neighbours(NamedTuple):
    """The messages of one step. All ranks post the same ones, so that none waits for another."""

    group: dist.ProcessGroup
    works: list

    @classmethod
    def post(cls, group, messages) -> _Neighbours:
        """Send and receive.

        Args:
            messages: ``(sent, to, received, source)`` each, with ranks of the group.
        """
        operations = []
        for sent, to, received, source in messages:
            if sent.numel():
                operations.append(dist.P2POp(dist.isend, sent, group=group, group_peer=to))
            if received.numel():
                operations.append(dist.P2POp(dist.irecv, received, group=group, group_peer=source))
        return cls(group, dist.batch_isend_irecv(operations) if operations else [])

    def wait(self) -> None:
        """Wait for all of them. On a GPU the stream waits, not the host."""
        for work in self.works:
            work.wait()


def _ring(plan: Exchange, rank: int, world: int, columns, compute) -> list[Tensor]:
    before, after, steps = (rank - 1) % world, (rank + 1) % world, plan.steps(world)
    longest = max(plan.sizes)
    home = None
    for start in range(0, max(longest, 1), PART):
        size = min(PART, longest - start)
        held = [padded(x, start, size) for x in columns]
        spare = [torch.empty_like(x) for x in held]
        shards = [(x, before, y, after) for x, y in zip(held, spare, strict=True)]
        posted = _Neighbours.post(plan.group, shards if size else [])
        if home is None:
            home = compute(Visit(True, slice(None)), columns)
        if not size:
            break
        found = None
        for step in range(1, steps + 1):
            posted.wait()
            held, spare = spare, held
            messages = []
            if step < steps:
                if step == 1:
                    # The first shard sent may be this rank's own columns, which stay.
                    spare = [torch.empty_like(x) for x in held]
                messages = [(x, before, y, after) for x, y in zip(held, spare, strict=True)]
            else:
                spare = []
            arriving = [torch.empty_like(x) for x in found or ()]
            messages += [(x, before, y, after) for x, y in zip(found or (), arriving, strict=True)]
            posted = _Neighbours.post(plan.group, messages)
            other = (rank + step) % world
            rows, valid = plan.part(rank, other, step, world)
            first, last = _within(valid, start, size)
            new = compute(Visit(False, rows), [x[:, first:last] for x in held])
            if found is None:
                found = new if step == steps else _placed(plan, new, first, size)
            else:
                posted.wait()
                posted = _Neighbours(plan.group, [])
                for result, x, y in zip(plan.results, arriving, new, strict=True):
                    result.merge(x[:, first:last], y)
                found = arriving
        posted.wait()
        if plan.results:
            _sent_home(plan, found, home, (start, size), rank, world)
    return home


def _within(columns: slice, start: int, size: int) -> tuple[int, int]:
    """Where some columns of a shard begin and end in the part of it from the column `start` on."""
    return tuple(min(max(i - start, 0), size) for i in (columns.start, columns.stop))


def _sent_home(plan: Exchange, found, home, part: tuple[int, int], rank: int, world: int) -> None:
    """Send the results about the shard met last to its rank, and merge what arrives here."""
    steps, (start, size) = plan.steps(world), part
    to, source = (rank + steps) % world, (rank - steps) % world
    # What has met one rank only is of the columns that met it.
    met = plan.part(source, rank, steps, world)[1] if steps == 1 else slice(start, start + size)
    first, last = _within(met, start, size)
    found = [x.contiguous() for x in found]
    arriving = [x.new_empty(x.shape[0], last - first, x.shape[2]) for x in found]
    messages = [(x, to, y, source) for x, y in zip(found, arriving, strict=True)]
    _Neighbours.post(plan.group, messages).wait()
    for result, x, y in zip(plan.results, home, arriving, strict=True):
        here = x[:, start + first : start + last]
        result.merge(here, y[:, : here.shape[1]])


def _placed(plan: Exchange, found: list[Tensor], first: int, size: int) -> list[Tensor]:
    """The results about some of `size` columns, from the column `first` on, as those of all."""
    placed = []
    for result, x in zip(plan.results, found, strict=True):
        if x.shape[1] < size:
            whole = x.new_full((x.shape[0], size, x.shape[2]), result.nothing)
            whole[:, first : first + x.shape[1]] = x
            x = whole
        placed.append(x.contiguous())
    return placed


def _gather(plan: Exchange, rank: int, world: int, columns, compute) -> list[Tensor]:
    longest, steps = max(plan.sizes), plan.steps(world)
    own = [padded(x, 0, longest) for x in columns]
    everyone = [x.new_empty(world, *x.shape) for x in own]
    works = [
        all_gather_single(y.flatten(0, 1), x, group=plan.group, async_op=True)
        for x, y in zip(own, everyone, strict=True)
        if longest
    ]
    home = compute(Visit(True, slice(None)), columns)
    for work in works:
        work.wait()
    found = [[x.new_empty(0)] * world for x in home]
    for others, rows in _runs(plan, rank, world, steps):
        parts = [(t, plan.part(rank, t, (t - rank) % world, world)[1]) for t in others]
        met = [torch.cat([x[t, :, valid] for t, valid in parts], 1) for x in everyone]
        new = compute(Visit(False, rows), met)
        sizes = [valid.stop - valid.start for _, valid in parts]
        for pieces, x in zip(found, new, strict=True):
            for t, piece in zip(others, x.split(sizes, 1), strict=True):
                pieces[t] = piece.flatten()
    del everyone
    for result, x, pieces in zip(plan.results, home, found, strict=True):
        _all_sent_home(plan, result, x, pieces, rank)
    return home


def _runs(plan: Exchange, rank: int, world: int, steps: int):
    """The ranks whose columns are met in one go, and the rows that meet them."""
    whole = steps - 1 if plan.half and world % 2 == 0 else steps
    if whole:
        yield [(rank + step) % world for step in range(1, whole + 1)], slice(0, None)
    if whole < steps:
        other = (rank + steps) % world
        yield [other], plan.part(rank, other, steps, world)[0]


def _all_sent_home(plan: Exchange, result: Result, home: Tensor, pieces, rank: int) -> None:
    """Send the results about each rank's columns to it, and merge what arrives here.

    Every rank meets some ranks only, so this takes the place of a reduce-scatter.
    """
    world, (G, _, width) = len(pieces), home.shape
    met = [slice(0, 0)] * world
    for source in range(world):
        step = (rank - source) % world
        if 0 < step <= plan.steps(world):
            met[source] = plan.part(source, rank, step, world)[1]
    sizes = [G * width * (columns.stop - columns.start) for columns in met]
    sent, arrived = torch.cat(pieces), home.new_empty(sum(sizes))
    splits = {"output_split_sizes": sizes, "input_split_sizes": [x.numel() for x in pieces]}
    dist.all_to_all_single(arrived, sent, **splits, group=plan.group)
    for columns, x in zip(met, arrived.split(sizes), strict=True):
        if x.numel():
            result.merge(home[:, columns], x.view(G, -1, width))
