"""The rows of all ranks of a process group as an op, and its transpose.

``rows_of_all_ranks`` takes this rank's rows ``x [n, D]`` and how many rows all ranks have together,
`total`, so that a compiler knows the shape of the result. The `argument` of the loss whose columns
are `total` is named in errors. The op returns

    rows [total, D]    the rows of all ranks in rank order
    sizes [W, 2]       n and `total` of each rank, int64 on the CPU

The ranks agree on the host. A `total` that is not the sum of the ranks' n is a ValueError on all
ranks. ``sum_of_own_rows`` takes ``g [total, D]`` and returns the sum ``[n, D]`` of what all ranks
hold for this rank's rows. ``ranks`` is `Ranks.encode`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.collectives import all_gather_single, reduce_scatter_single
from ..distributed.exchange import padded
from ..distributed.groups import Ranks, agree
from ._library import LIBRARY, implement_over_ranks

LIBRARY.define(
    "rows_of_all_ranks(Tensor x, SymInt total, str argument, str ranks) -> (Tensor, Tensor)"
)
LIBRARY.define("sum_of_own_rows(Tensor g, Tensor x, Tensor sizes, str ranks) -> Tensor")


def gather(x: Tensor, total: int, argument: str, encoded: str) -> tuple[Tensor, Tensor]:
    """The op ``rows_of_all_ranks``."""
    ranks = Ranks.decode(encoded)
    agreed = agree(ranks, x.shape[0], total, f"rows of all ranks, {x.shape[1]} {x.dtype}")
    rows = [n for n, _ in agreed]
    for rank, (_, claimed) in enumerate(agreed):
        if claimed != sum(rows):
            raise ValueError(
                f"{argument} must have a column for each of the {sum(rows)} samples of all ranks, "
                f"got {claimed} on rank {rank}; the ranks have {rows} samples"
            )
    sizes, longest = torch.tensor(agreed), max(rows)
    if len(rows) == 1 or not longest:
        return x.clone(), sizes
    own = padded(x[None], longest)[0]
    everyone = x.new_empty(len(rows), *own.shape)
    all_gather_single(everyone.flatten(0, 1), own, group=ranks.process_group)
    return torch.cat([part[:n] for part, n in zip(everyone, rows, strict=True)]), sizes


def sum_home(g: Tensor, x: Tensor, sizes: Tensor, ranks: str) -> Tensor:
    """The op ``sum_of_own_rows``. It reads the shape of x only."""
    rows = sizes[:, 0].tolist()
    if len(rows) == 1 or not max(rows):
        return g.clone()
    parts = torch.stack([padded(part[None], max(rows))[0] for part in g.split(rows)])
    mine = torch.empty_like(parts[0])
    reduce_scatter_single(mine, parts.flatten(0, 1), group=Ranks.decode(ranks).process_group)
    return mine[: x.shape[0]].clone()


implement_over_ranks("rows_of_all_ranks", gather)
implement_over_ranks("sum_of_own_rows", sum_home)
rows_of_all_ranks = torch.ops.fused_contrastive.rows_of_all_ranks.default
sum_of_own_rows = torch.ops.fused_contrastive.sum_of_own_rows.default


@torch.library.register_fake("fused_contrastive::rows_of_all_ranks", lib=LIBRARY)
def _(x, total, argument, ranks):
    return (
        x.new_empty(total, x.shape[1]),
        torch.empty((Ranks.decode(ranks).size, 2), dtype=torch.int64, device="cpu"),
    )


@torch.library.register_fake("fused_contrastive::sum_of_own_rows", lib=LIBRARY)
def _(g, x, sizes, ranks):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
