"""Every rank's columns meet every rank's rows, and what is found out about them travels home.

A rank computes its rows against its own columns, then against those of the ranks after it. There
are two strategies with one interface. `gather` has all columns at once. In a ring each rank passes
the columns on to the rank before it, so that its memory does not grow with the number of ranks.

The columns are met a piece of every shard at a time. While one piece is computed, the next one
arrives and the results about the one before travel home.

Where rows and columns are one set, a pair of shards is computed once, by one of its two ranks. A
rank then meets only the half of the ranks that come after it. With an even number of ranks the last
shard of this half would be met from both sides, so each side takes half of the rectangle. A piece
has as many columns of either half of a shard, so that both sides always have the same to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..problem import ABSENT
from .collectives import all_gather_single

GATHERED_BYTES = 1 << 28
"""``strategy="auto"`` gathers where a rank's gathered columns take at most this many bytes."""

PIECE = 8192
"""The most columns of a shard that a piece has. On a GPU, whose calls take the host a while, a
piece has as many where there are so many."""

LEAST = 4096
"""On a CPU a piece has at least so many columns, for each adds passes over the rows.

Cutting 4,096 columns in two took 2 % more time, and in four 4 % (NT-Xent, 256 features).
"""

PIECES = 8
"""Into how many pieces a CPU cuts a shard otherwise, so that they take memory as the shard does."""


class Visit(NamedTuple):
    """What meets: these rows of this rank, and columns that the call comes with."""

    own: bool  # whether the columns are this rank's own, all of them
    rows: slice

    def parts(self, M: int) -> list[Visit]:
        """The same visit with some of the rows at a time, of M that this rank has.

        What a block allocates for its rows is then no larger than for the columns of a piece.
        """
        first, last, _ = self.rows.indices(M)
        starts = range(first, max(last, first + 1), PIECE)
        return [self._replace(rows=slice(i, min(i + PIECE, last))) for i in starts]


class Piece(NamedTuple):
    """Up to `size` columns of the first half of every shard from `start` on, and of its second."""

    start: int
    size: int

    def of(self, n: int) -> tuple[slice, slice]:
        """These columns of a shard that has n, in the first half and in the second."""
        middle = (n + 1) // 2
        first, second = (
            slice(min(low + self.start, high), min(low + self.start + self.size, high))
            for low, high in ((0, middle), (middle, n))
        )
        return first, second


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

    def pieces(self, device: torch.device) -> list[Piece]:
        """What the shards are cut into. It is the same on all ranks."""
        longest = max(self.sizes)
        half, middle = max(piece_columns(longest, device.type) // 2, 1), (longest + 1) // 2
        return [Piece(start, min(half, middle - start)) for start in range(0, middle, half)]

    def met(self, rank: int, step: int, piece: Piece) -> tuple[slice, tuple[slice, ...]]:
        """The rows of this rank, and the columns of a piece of another shard, that meet.

        The other shard is that of the rank which comes `step` ranks after this one.
        """
        world = len(self.sizes)
        other = (rank + step) % world
        columns = piece.of(self.sizes[other])
        if not self.half or 2 * step != world:
            return slice(0, None), columns
        if rank < other:
            return slice(0, (self.sizes[rank] + 1) // 2), columns
        return slice(0, None), columns[1:]


def piece_columns(longest: int, device: str) -> int:
    """The most columns of a shard that a piece has, where the longest shard has so many."""
    size = PIECE if device != "cpu" else min(PIECE, max(LEAST, -(-longest // PIECES)))
    return min(size, longest)


def taken(x: Tensor, columns: tuple[slice, ...]) -> Tensor:
    """Some columns of x ``[G, n, ...]``, one slice of them after the other."""
    first, *others = columns
    for second in others:
        if second.start != first.stop:
            return joined([x[:, columns] for columns in (first, second)], 1)
        first = slice(first.start, second.stop)
    return x[:, first]


def joined(tensors: list[Tensor], dim: int) -> Tensor:
    """The tensors, one after the other. Where only one of them has elements it is not copied."""
    filled = [x for x in tensors if x.numel()]
    return filled[0] if len(filled) == 1 else torch.cat(tensors, dim)


def padded(x: Tensor, size: int) -> Tensor:
    """The columns of x ``[G, n, ...]``, and after them anything, so that there are `size`."""
    if x.shape[1] == size:
        return x.contiguous()
    buffer = x.new_zeros(x.shape[0], size, *x.shape[2:])
    buffer[:, : x.shape[1]] = x
    return buffer


def length(columns: tuple[slice, ...]) -> int:
    """How many columns these are."""
    return sum(x.stop - x.start for x in columns)


class _Arriving(NamedTuple):
    """Tensors that are under way to this rank, and what makes them arrive."""

    tensors: list[Tensor]
    works: list
    sent: list[Tensor]  # kept until they have left

    @classmethod
    def sent_and_received(cls, group, sent, to: int, received, source: int) -> _Arriving:
        """Send tensors to one rank of the group, and receive tensors from another.

        All ranks do this in the same order, so that none waits for another.
        """
        pairs = (dist.isend, sent, to), (dist.irecv, received, source)
        operations = [
            dist.P2POp(what, x, group=group, group_peer=peer)
            for what, tensors, peer in pairs
            for x in tensors
            if x.numel()
        ]
        works = dist.batch_isend_irecv(operations) if operations else []
        return cls(received, works, sent)

    def wait(self) -> list[Tensor]:
        """The tensors, which have arrived. On a GPU the stream waits, not the host."""
        for work in self.works:
            work.wait()
        return self.tensors


def _ring(plan: Exchange, rank: int, world: int, columns, compute) -> list[Tensor]:
    before, after, steps = (rank - 1) % world, (rank + 1) % world, plan.steps(world)
    n, pieces = plan.sizes[rank], plan.pieces(columns[0].device)

    def passed_on(sent: list[Tensor]) -> _Arriving:
        received = [torch.empty_like(x) for x in sent]
        return _Arriving.sent_and_received(plan.group, sent, before, received, after)

    def room(piece: Piece) -> int:
        return length(piece.of(max(plan.sizes)))

    def begun(piece: Piece) -> _Arriving:
        return passed_on([padded(taken(x, piece.of(n)), room(piece)) for x in columns])

    coming = begun(pieces[0]) if pieces else ABSENT
    home = compute(Visit(True, slice(None)), columns)
    going_home: _Home = []
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        found = ABSENT
        for step in range(1, steps + 1):
            held = coming.wait()
            if step < steps:
                coming = passed_on(held)
            elif following is not None:
                coming = begun(following)
            arriving = None if found is None else passed_on(found)
            rows, its = plan.met(rank, step, piece)
            last = length(piece.of(plan.sizes[(rank + step) % world]))
            first = last - length(its)
            new = compute(Visit(False, rows), [x[:, first:last] for x in held])
            if arriving is not None:
                found = arriving.wait()
                for result, x, y in zip(plan.results, found, new, strict=True):
                    result.merge(x[:, first:last], y)
            elif steps > 1:
                found = [padded(x, room(piece)) for x in new]
            else:
                found = new
        if plan.results:
            # What has met one rank only is about the columns that it met.
            source, to = (rank - steps) % world, (rank + steps) % world
            its = plan.met(source, 1, piece)[1] if steps == 1 else piece.of(n)
            sent = [x[:, :last].contiguous() for x in found]
            received = [x.new_empty(x.shape[0], length(its), x.shape[2]) for x in found]
            posted = _Arriving.sent_and_received(plan.group, sent, to, received, source)
            _merge_home(plan, home, going_home)
            going_home = [(its, posted)]
    _merge_home(plan, home, going_home)
    return home


def _gather(plan: Exchange, rank: int, world: int, columns, compute) -> list[Tensor]:
    longest, steps = max(plan.sizes), plan.steps(world)
    own = [padded(x, longest) for x in columns]
    everyone = [x.new_empty(world, *x.shape) for x in own]
    works: list = [
        all_gather_single(y.flatten(0, 1), x, group=plan.group, async_op=True)
        for x, y in zip(own, everyone, strict=True)
        if longest
    ]
    home = compute(Visit(True, slice(None)), columns)
    for work in works:
        work.wait()
    going_home: _Home = []
    for piece in plan.pieces(columns[0].device):
        found = [[x.new_empty(0)] * world for x in home]
        for run in _runs(plan, world, steps):
            rows = plan.met(rank, run[0], piece)[0]
            met = [((rank + step) % world, plan.met(rank, step, piece)[1]) for step in run]
            new = compute(
                Visit(False, rows),
                [joined([taken(x[t], its) for t, its in met], 1) for x in everyone],
            )
            sizes = [length(its) for _, its in met]
            for parts, x in zip(found, new, strict=True):
                for (t, _), part in zip(met, x.split(sizes, 1), strict=True):
                    parts[t] = part.flatten()
        if plan.results:
            posted = _sent_to_all(plan, home, found, piece, rank)
            _merge_home(plan, home, going_home)
            going_home = posted
    _merge_home(plan, home, going_home)
    return home


def _runs(plan: Exchange, world: int, steps: int) -> list[list[int]]:
    """The ranks whose columns are met in one go, as the steps from this rank to them."""
    whole = steps - 1 if plan.half and world % 2 == 0 else steps
    runs = list(range(1, whole + 1)), list(range(whole + 1, steps + 1))
    return [run for run in runs if run]


_Home = list[tuple[tuple[slice, ...], _Arriving]]
"""Columns of this rank, and what is under way about them from one rank, for several ranks."""


def _sent_to_all(plan: Exchange, home, found, piece: Piece, rank: int) -> _Home:
    """Send the results about each rank's columns to it.

    Every rank meets some ranks only, so this takes the place of a reduce-scatter.

    Args:
        home: a tensor ``[G, n, width]`` for each result.
        found: for each result what is sent to each rank, flat.
    """
    world = len(plan.sizes)
    met: list[tuple[slice, ...]] = [()] * world
    for step in range(1, plan.steps(world) + 1):
        source = (rank - step) % world
        met[source] = plan.met(source, step, piece)[1]
    works, received = [], []
    for x, parts in zip(home, found, strict=True):
        G, _, width = x.shape
        sizes = [G * width * length(its) for its in met]
        arriving = x.new_empty(sum(sizes))
        splits = {"output_split_sizes": sizes, "input_split_sizes": [x.numel() for x in parts]}
        sent = joined(parts, 0)
        work = dist.all_to_all_single(arriving, sent, **splits, group=plan.group, async_op=True)
        works.append(work)
        received.append([part.view(G, -1, width) for part in arriving.split(sizes)])
    return [
        (met[source], _Arriving([x[source] for x in received], works, []))
        for source in range(world)
        if length(met[source])
    ]


def _merge_home(plan: Exchange, home, going_home: _Home) -> None:
    """Merge what other ranks found out about this rank's columns."""
    for columns, arriving in going_home:
        sizes = [length((its,)) for its in columns]
        for result, x, found in zip(plan.results, home, arriving.wait(), strict=True):
            for its, part in zip(columns, found.split(sizes, 1), strict=True):
                result.merge(x[:, its], part)
