"""Sums over the ranks as ops, so that autograd and torch.compile see them.

``sum_over_ranks`` returns the sum of the ranks' tensors of one shape. ``averaged_gradient`` returns
its tensor, and the gradient of that is the mean of the ranks' gradients. ``ranks`` is
`Ranks.encode`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.groups import Ranks
from ._library import LIBRARY, implement_over_ranks

LIBRARY.define("sum_over_ranks(Tensor x, str ranks) -> Tensor")
LIBRARY.define("averaged_gradient(Tensor x, str ranks) -> Tensor")


def total(x: Tensor, ranks: str) -> Tensor:
    """The op ``sum_over_ranks``."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=Ranks.decode(ranks).process_group)
    return x


def unchanged(x: Tensor, ranks: str) -> Tensor:
    """The op ``averaged_gradient``. Nothing is exchanged before the backward pass."""
    return x.clone(memory_format=torch.contiguous_format)


implement_over_ranks("sum_over_ranks", total)
implement_over_ranks("averaged_gradient", unchanged)
sum_over_ranks = torch.ops.fused_contrastive.sum_over_ranks.default
averaged_gradient = torch.ops.fused_contrastive.averaged_gradient.default


@torch.library.register_fake("fused_contrastive::sum_over_ranks", lib=LIBRARY)
@torch.library.register_fake("fused_contrastive::averaged_gradient", lib=LIBRARY)
def _(x, ranks):
    return torch.empty_like(x, memory_format=torch.contiguous_format)
