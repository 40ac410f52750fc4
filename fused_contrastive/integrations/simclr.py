"""Spijkervet/SimCLR (`simclr`): ``from fused_contrastive.integrations.simclr import NT_Xent``.

Every option streams. With ``world_size > 1`` this class differs from the package's on purpose, and
a `DifferenceWarning` says so once. The package gathers ``[z_i; z_j]`` rank by rank and then pairs
rows as if all z_i came before all z_j. So its positives are rows of different samples, and each
rank gets a part of the gradient only. Here the positives are the two views of a sample. Every rank
returns the loss of the global batch. The mean of the ranks' gradients, which
DistributedDataParallel takes, is exactly its gradient (see docs/many_gpus.md). The ranks may have
different numbers of rows.

The package builds its ``[2B, 2B]`` mask by a loop over B; here it is built when it is asked for.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..dtypes import accumulation_dtype, matrix_dtype
from ..losses.nt_xent import nt_xent_loss
from ._classes import absent
from ._common import (
    MeanOfRanks,
    differs,
    falls_back,
    in_dtype_of,
    mismatch,
    number,
    package,
    world,
)
from ._patch import patching

if TYPE_CHECKING:
    import simclr.modules.nt_xent as peer
else:
    peer = package("simclr.modules.nt_xent", "simclr")

__all__ = ["NT_Xent", "patch"]

__getattr__ = absent(__name__)

# `torch.nn.CosineSimilarity` raises smaller norms to this one.
EPS = 1e-8


class NT_Xent(peer.NT_Xent):
    """Works as `simclr.modules.NT_Xent`: ``NT_Xent(batch_size, temperature, world_size)``.

    Call it with ``(z_i, z_j)``, ``[batch_size, D]`` each.
    """

    def __init__(self, batch_size, temperature, world_size):
        nn.Module.__init__(self)
        self.batch_size = batch_size
        self.temperature = temperature
        self.world_size = world_size
        self.criterion = nn.CrossEntropyLoss(reduction="sum")
        self.similarity_f = nn.CosineSimilarity(dim=2)

    @functools.cached_property
    def mask(self):
        return self.mask_correlated_samples(self.batch_size, self.world_size)

    def forward(self, z_i, z_j):
        group = world()
        if self.world_size > 1 and group is not None and group.size() == self.world_size:
            return self._over_ranks(z_i, z_j, group)
        reason = self._reason(z_i, z_j)
        if reason is not None:
            falls_back("simclr.NT_Xent", reason)
            return super().forward(z_i, z_j)
        z1, z2 = unit(torch.cat((z_i, z_j))).chunk(2)
        temperature = number(self.temperature, z_i, divisor=True)
        loss = nt_xent_loss(z1, z2, temperature, normalize=False, group=None)
        return in_dtype_of(z_i, loss)

    def _over_ranks(self, z_i, z_j, group):
        """The loss of all ranks' rows. What does not stream is an error of `nt_xent_loss`."""
        differs(
            "simclr.NT_Xent",
            f"for world_size={self.world_size} the package pairs rows of different samples, "
            "and this class pairs the two views of each sample",
        )
        z1, z2, temperature = z_i, z_j, self.temperature
        rows = all(
            isinstance(z, torch.Tensor) and z.is_floating_point() and z.dim() == 2 for z in (z1, z2)
        )
        if rows:
            z1, z2 = unit(z1), unit(z2)
            found = number(temperature, z_i, divisor=True)
            temperature = temperature if found is None else found
        loss = nt_xent_loss(z1, z2, temperature, normalize=not rows, group=group)
        return in_dtype_of(z_i, MeanOfRanks.apply(loss, group))

    def _reason(self, z_i, z_j) -> str | None:
        if self.world_size != 1:
            return f"world_size={self.world_size} without a process group of this size"
        reason = mismatch(z_i, z_j)
        if reason is None and len(z_i) + len(z_j) != 2 * self.batch_size:
            reason = f"batches of {len(z_i)} and {len(z_j)} with batch_size={self.batch_size}"
        if reason is None and number(self.temperature, z_i, divisor=True) is None:
            reason = f"temperature={self.temperature}"
        return reason


def unit(z: torch.Tensor) -> torch.Tensor:
    """The rows of ``z [B, D]`` over their norms.

    As in `torch.cosine_similarity`, smaller norms are raised to EPS without a gradient of their
    own.
    """
    dtype = matrix_dtype(z)
    z = z.to(accumulation_dtype(z.dtype))
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return (z / torch.where(norm < EPS, norm - norm.detach() + EPS, norm)).to(dtype)


patch = patching(__name__, {peer.NT_Xent: NT_Xent})
