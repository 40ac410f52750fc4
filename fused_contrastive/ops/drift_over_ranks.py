"""The scale of the drift loss over the ranks of a process group.

``drift_scale_over_ranks`` takes this rank's groups ``x [G, P, D]``, their ``weight [G, P]`` or
None, ``rows`` and ``clip`` as ``distance_sums`` does, and ``ranks``, which is `Ranks.encode`. G is
this rank's own and may be 0. It returns

    scale []         the mean of ``d_ij weight_j`` over all rows and columns of the groups of all
                     ranks, divided by the mean weight
    groups [W]       how many groups each rank has, int64 on the CPU

Shapes and options are compared on the host before anything is exchanged. Nothing is differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.collectives import add_over_ranks
from ..distributed.groups import Ranks, agree
from ..dtypes import accumulation_dtype
from ._library import LIBRARY, implement_over_ranks
from .force import distance_sums

LIBRARY.define(
    "drift_scale_over_ranks(Tensor x, Tensor? weight, SymInt rows, float clip, str backend, "
    "str ranks) -> (Tensor, Tensor)"
)


def drift_scale(
    x: Tensor, weight: Tensor | None, rows: int, clip: float, backend: str, encoded: str
) -> tuple[Tensor, Tensor]:
    """The op ``drift_scale_over_ranks``."""
    ranks, (G, P, D) = Ranks.decode(encoded), x.shape
    sizes = agree(ranks, G, G, f"{rows} {P} {D} {x.dtype} {weight is None} {clip}")
    totals = x.new_zeros(2, dtype=torch.float64)
    if x.numel() and rows:
        totals[0] = distance_sums(x, weight, rows, clip, backend).double().sum()
        totals[1] = G * P if weight is None else weight.double().sum()
    distance, weights = add_over_ranks(totals, ranks.process_group)
    # With no rows at all this is NaN, as a mean over nothing is.
    scale = distance / (rows * weights)
    return scale.to(accumulation_dtype(x.dtype)), torch.tensor([n for n, _ in sizes])


implement_over_ranks("drift_scale_over_ranks", drift_scale)
drift_scale_over_ranks = torch.ops.fused_contrastive.drift_scale_over_ranks.default


@torch.library.register_fake("fused_contrastive::drift_scale_over_ranks", lib=LIBRARY)
def _(x, weight, rows, clip, backend, ranks):
    groups = torch.empty((Ranks.decode(ranks).size,), dtype=torch.int64, device="cpu")
    return x.new_empty((), dtype=accumulation_dtype(x.dtype)), groups
