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

GATHERED_BYTES = 1 << 26
"""``strategy="auto"`` gathers where a rank's gathered columns take at most this many bytes."""

PART = 16384
"""The rows of a shard that travel around the ring together."""


class Visit(NamedTuple):
    """What meets: these rows of this rank, and columns that the call comes with."""

    own: bool  # whether the columns are this rank's own, all of them
    rows: slice


class Result(NamedTuple):
    """How the results about the columns are put together, one entry for each tensor."""

    how: str  # "sum", "lse" or "max"
    width: int  # of the last dimension
    dtype: torch.dtype

    @property
    def nothing(self) -> float:
        """The value that changes nothing."""
        return 0.0 if self.how == "sum" else float("-inf")

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        """Both together, in the memory of x."""
        if self.how == "sum":
            return x.add_(y)
        return torch.logaddexp(x, y, out=x) if self.how == "lse" else torch.maximum(x, y, out=x)


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

    def empty(self, like: Tensor, *shape: int) -> list[Tensor]:
        """A tensor for each result that holds nothing yet, ``[*shape, width]``."""
        return [
            torch.full((*shape, r.width), r.nothing, dtype=r.dtype, device=like.device)
            for r in self.results
        ]


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
            operations.append(dist.P2POp(dist.isend, sent, group=group, group_peer=to))
            operations.append(dist.P2POp(dist.irecv, received, group=group, group_peer=source))
        return cls(group, dist.batch_isend_irecv(operations) if operations else [])

    def wait(self) -> None:
        """Wait for all of them. On a GPU the stream waits, not the host."""
        for work in self.works:
            work.wait()


def _ring(plan: Exchange, rank: int, world: int, columns, compute) -> list[Tensor]:
    before, after, steps = (rank - 1) % world, (rank + 1) % world, plan.steps(world)
    G, longest = columns[0].shape[0], max(plan.sizes)
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
            arriving = [torch.empty_like(x) for x in found or ()]
            messages += [(x, before, y, after) for x, y in zip(found or (), arriving, strict=True)]
            posted = _Neighbours.post(plan.group, messages)
            other = (rank + step) % world
            rows, valid = plan.part(rank, other, step, world)
            first, last = (min(max(i - start, 0), size) for i in (valid.start, valid.stop))
            new = compute(Visit(False, rows), [x[:, first:last] for x in held])
            partial = _placed(plan, new, first, size, G)
            if found is not None:
                posted.wait()
                posted = _Neighbours(plan.group, [])
                pairs = zip(plan.results, partial, arriving, strict=True)
                partial = [result.merge(x, y) for result, x, y in pairs]
            found = partial
        posted.wait()
        if plan.results:
            arriving = [torch.empty_like(x) for x in found]
            to, source = (rank + steps) % world, (rank - steps) % world
            messages = [(x, to, y, source) for x, y in zip(found, arriving, strict=True)]
            _Neighbours.post(plan.group, messages).wait()
            for result, x, y in zip(plan.results, home, arriving, strict=True):
                here = x[:, start : start + size]
                result.merge(here, y[:, : here.shape[1]])
    return home


def _placed(plan: Exchange, found: list[Tensor], first: int, size: int, G: int) -> list[Tensor]:
    """The results about some of `size` columns, from the column `first` on, as those of all."""
    if all(x.shape[1] == size for x in found):
        return found
    whole = plan.empty(found[0], G, size) if found else []
    for x, y in zip(whole, found, strict=True):
        x[:, first : first + y.shape[1]] = y
    return whole


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
    found = [{} for _ in plan.results]
    for others, rows in _runs(plan, rank, world, steps):
        parts = [(t, plan.part(rank, t, (t - rank) % world, world)[1]) for t in others]
        met = [_together([x[t, :, valid] for t, valid in parts]) for x in everyone]
        new = compute(Visit(False, rows), met)
        lengths = [valid.stop - valid.start for _, valid in parts]
        for about, x in zip(found, new, strict=True):
            about.update(zip(others, x.split(lengths, 1), strict=True))
    del everyone
    for result, x, about in zip(plan.results, home, found, strict=True):
        _send_home(plan, result, x, about)
    return home


def _together(parts: list[Tensor]) -> Tensor:
    """The columns of all parts, without a copy where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _runs(plan: Exchange, rank: int, world: int, steps: int):
    """The ranks whose columns are met in one go, and the rows that meet them."""
    whole = steps - 1 if plan.half and world % 2 == 0 else steps
    if whole:
        yield [(rank + step) % world for step in range(1, whole + 1)], slice(0, None)
    if whole < steps:
        other = (rank + steps) % world
        yield [other], plan.part(rank, other, steps, world)[0]


def _send_home(plan: Exchange, result: Result, home: Tensor, found: dict[int, Tensor]) -> None:
    """Send each rank what was found about its columns, and merge into `home` what arrives.

    A rank sends to those that it has met, and nothing to the others.
    """
    rank, world = dist.get_rank(plan.group), dist.get_world_size(plan.group)
    G, _, width = home.shape
    sent = [found[t].reshape(-1) if t in found else home.new_empty(0) for t in range(world)]
    places = [_met_by(plan, t, rank, world) for t in range(world)]
    counts = [G * (place.stop - place.start) * width for place in places]
    arrived = home.new_empty(sum(counts))
    leaving = [x for x in sent if x.numel()]
    dist.all_to_all_single(
        arrived,
        _together([x[None] for x in leaving])[0] if leaving else home.new_empty(0),
        output_split_sizes=counts,
        input_split_sizes=[x.numel() for x in sent],
        group=plan.group,
    )
    for place, x in zip(places, arrived.split(counts), strict=True):
        if x.numel():
            result.merge(home[:, place], x.view(G, -1, width))


def _met_by(plan: Exchange, other: int, rank: int, world: int) -> slice:
    """Which of this rank's columns another rank meets."""
    step = (rank - other) % world
    return plan.part(other, rank, step, world)[1] if 0 < step <= plan.steps(world) else slice(0, 0)
