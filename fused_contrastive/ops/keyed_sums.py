"""Sums over rows with equal keys, over the ranks of a process group, as an op.

Contract
--------
Every rank calls with its own rows ``x [n, C]``, their integer ``key [n]``, and the keys ``of [m]``
that it asks about. n and m are its own, and may be 0. ``keyed_sums_over_ranks`` returns

    sums [m, C]        for each key in ``of``, the sum of all ranks' rows with that key, in `dtype`
    sizes [W, 2]       m and n of each rank, int64 on the CPU

The sums are accumulated in float64 where the device has it, and every run gives the same bits. The
op is linear, and its transpose is the op with `key` and `of` exchanged, and with the columns of
`sizes` exchanged. With `sizes` the ranks have agreed already. Without, they agree on the host, and
``ranks`` is `Ranks.encode`. In a ring a rank holds O((n + m) C) numbers.

``exactly_summable`` takes ``x [n, C]`` and returns rows close to it, in float64 where the device
has it. These add up without rounding, so that their sums have the same bits on all ranks, in any
order. They are multiples of a power of two, one for each column. The magnitudes of a column over
all ranks are at most 2^51 multiples in sum. It is for constants and has no derivative.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.exchange import Exchange, Visit
from ..distributed.groups import Ranks, agree
from ._columns import packed, unpacked
from ._library import LIBRARY, implement_over_ranks

LIBRARY.define(
    "keyed_sums_over_ranks(Tensor x, Tensor key, Tensor of, Tensor? sizes, ScalarType dtype, "
    "str ranks) -> (Tensor, Tensor)"
)
LIBRARY.define("exactly_summable(Tensor x, str ranks) -> Tensor")


def widened(x: Tensor) -> Tensor:
    """x in float64 where its device has that."""
    return x.double() if x.device.type in ("cpu", "cuda") else x


def keyed_sums(x: Tensor, key: Tensor, of: Tensor) -> Tensor:
    """For each key in ``of [m]``, the sum ``[m, C]`` of the rows of ``x [n, C]`` with that key.

    Every run gives the same bits, forward and backward.
    """
    if not x.shape[0]:
        return x.new_zeros(of.shape[0], x.shape[1])
    order, sums = key.sort().values, torch.zeros_like(x)
    place = torch.searchsorted(order, key)
    if x.device.type == "cuda":
        # CUDA's index_add adds in any order.
        sums = sums.index_put((place,), x, accumulate=True)
    else:
        sums = sums.index_add(0, place, x)
    place = torch.searchsorted(order, of).clamp_max(x.shape[0] - 1)
    return sums.index_select(0, place).masked_fill((order[place] != of).unsqueeze(-1), 0.0)


def over_ranks(
    x: Tensor,
    key: Tensor,
    of: Tensor,
    table: Tensor | None,
    dtype: torch.dtype,
    encoded: str,
) -> tuple[Tensor, Tensor]:
    """The op ``keyed_sums_over_ranks``."""
    ranks, (n, C) = Ranks.decode(encoded), x.shape
    if table is None:
        sizes = agree(ranks, of.shape[0], n, f"keyed sums of {C} {x.dtype} {dtype}")
    else:
        sizes = table.tolist()
    total = widened(x.new_zeros(of.shape[0], C))

    def compute(visit: Visit, met: list[Tensor]) -> list[Tensor]:
        (of_rows,) = unpacked(met[1:], [torch.int64])
        total.add_(keyed_sums(widened(met[0][0]), of_rows[0], of))
        return []

    columns = [n for _, n in sizes]
    exchange = Exchange(ranks.process_group, ranks.strategy, columns, half=False, results=())
    exchange.run([x[None], *packed([key[None]])], compute)
    return total.to(dtype), torch.tensor(sizes)


def summable(x: Tensor, ranks: str) -> Tensor:
    """The op ``exactly_summable``."""
    x = widened(x)
    total = x.abs().sum(0)
    dist.all_reduce(total, group=Ranks.decode(ranks).process_group)
    _, exponent = torch.frexp(total)
    # The smallest unit is a normal number.
    unit = torch.ldexp(torch.ones_like(total), (exponent - 51).clamp_min(-1022))
    return (x / unit).round() * unit


implement_over_ranks("keyed_sums_over_ranks", over_ranks)
implement_over_ranks("exactly_summable", summable)
keyed_sums_over_ranks = torch.ops.fused_contrastive.keyed_sums_over_ranks.default
exactly_summable = torch.ops.fused_contrastive.exactly_summable.default


@torch.library.register_fake("fused_contrastive::keyed_sums_over_ranks", lib=LIBRARY)
def _(x, key, of, sizes, dtype, ranks):
    return (
        x.new_empty((of.shape[0], x.shape[1]), dtype=dtype),
        torch.empty((Ranks.decode(ranks).size, 2), dtype=torch.int64, device="cpu"),
    )


@torch.library.register_fake("fused_contrastive::exactly_summable", lib=LIBRARY)
def _(x, ranks):
    return widened(torch.empty_like(x, memory_format=torch.contiguous_format))
