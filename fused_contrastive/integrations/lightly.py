"""lightly: ``from fused_contrastive.integrations.lightly import NTXentLoss``.

`DirectCLRLoss`, `DCLLoss`, `DCLWLoss` and `BarlowTwinsLoss` are here, too.

Every option streams: the memory bank (lightly's own), `weight_fn`, and `gather_distributed`, whose
values and gradients are those of a loss with ``group="world"`` (see docs/many_gpus.md). Each pair
of shards is computed once there, where lightly computes the rows of every process. A temperature
falls back if it has several elements, is infinite or, in DCL and DCLW, is 0. So do inputs of Barlow
Twins that do not have two dimensions, and those of ranks with different numbers of samples. The
other losses stream there, with the mean over the samples of all ranks; lightly's own need equal
numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..autograd.over_ranks import sum_over_ranks
from ..dtypes import matrix_dtype
from ..losses._comparison import compare
from ..losses._over_ranks import over_ranks
from ..losses.correlation import UnevenShards, barlow_twins_loss
from ..losses.info_nce import info_nce_loss
from ..losses.nt_xent import nt_xent_loss
from ..problem import Candidates
from ..scalars import inverse_scale
from ._classes import absent
from ._common import falls_back, in_dtype_of, mismatch, number, package, world
from ._patch import patching

if TYPE_CHECKING:
    import lightly.loss as peer
else:
    peer = package("lightly.loss", "lightly")

__all__ = ["BarlowTwinsLoss", "DCLLoss", "DCLWLoss", "DirectCLRLoss", "NTXentLoss", "patch"]

__getattr__ = absent(__name__)


@over_ranks
def log_sums(
    out0: torch.Tensor, out1: torch.Tensor, temperature, *, group
) -> tuple[torch.Tensor, torch.Tensor, int | torch.Tensor]:
    """The logits ``[n]`` of the pairs, and the log-sum-exp ``[2, n]`` of each row's other logits.

    These are the logits with the rows of other samples, over all ranks of the group. The third
    result is how many samples a rank has on average. A sum over rows is divided by it, so that the
    mean over the ranks is that over all rows.
    """
    scale = inverse_scale(number(temperature, out0, divisor=True), out0)
    pair = compare(out0, out1, scale, normalize=True)
    both = pair._replace(rows=torch.cat([pair.rows, pair.columns]), columns=None, ranks=group)
    others = both.lse(Candidates("not_pair", stride=max(len(out0), 1)))
    samples = len(out0)
    if group is not None:
        samples = sum_over_ranks(scale.new_full((), samples), group.encode()) / group.size
    return scale * pair.dot(pair.columns), others.rows.view(2, -1), samples


def reason_against(temperature, out0: torch.Tensor, out1: torch.Tensor) -> str | None:
    """Why these do not stream; None: they do."""
    reason = mismatch(out0, out1)
    if reason is None and out0.shape != out1.shape:
        reason = "views of different lengths"
    if reason is None and number(temperature, out0, divisor=True) is None:
        reason = f"temperature={temperature}"
    return reason


class NTXentLoss(peer.NTXentLoss):
    """Works as `lightly.loss.NTXentLoss` does.

    Build it with ``NTXentLoss(temperature, memory_bank_size, gather_distributed)`` and call it with
    ``(out0, out1)``, ``[n, d]`` each.
    """

    def forward(self, out0: torch.Tensor, out1: torch.Tensor) -> torch.Tensor:
        reason = reason_against(self.temperature, out0, out1) or self._bank_reason(out0)
        if reason is not None:
            falls_back("lightly.NTXentLoss", reason)
            return super().forward(out0, out1)
        temperature = number(self.temperature, out0, divisor=True)
        if self.memory_bank.size[0]:
            unit0, unit1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
            unit1, negatives = self.memory_bank.forward(unit1, update=unit0.requires_grad)
            loss = info_nce_loss(
                unit0,
                unit1,
                negatives.to(out0.device).T,
                temperature,
                normalize=False,
                group=None,
            )
        else:
            group = world() if self.gather_distributed else None
            loss = nt_xent_loss(out0, out1, temperature, group=group)
        return in_dtype_of(out0, loss)

    def _bank_reason(self, out0: torch.Tensor) -> str | None:
        bank = self.memory_bank.bank
        if not self.memory_bank.size[0] or (
            matrix_dtype(bank) == matrix_dtype(out0) and bank.shape[1] == out0.shape[1]
        ):
            return None
        return (
            f"a memory bank of {bank.dtype}, {tuple(bank.shape)}, "
            f"for outputs of {out0.dtype}, {tuple(out0.shape)}"
        )


class DirectCLRLoss(peer.DirectCLRLoss, NTXentLoss):
    """Works as `lightly.loss.DirectCLRLoss`: `NTXentLoss` of the first `loss_dim` dimensions."""


class DCLLoss(peer.DCLLoss):
    """Works as `lightly.loss.DCLLoss`: ``DCLLoss(temperature, weight_fn, gather_distributed)``.

    Call it with ``(out0, out1)``, ``[n, d]`` each.
    """

    def forward(self, out0: torch.Tensor, out1: torch.Tensor) -> torch.Tensor:
        reason = reason_against(self.temperature, out0, out1)
        if reason is not None:
            falls_back(f"lightly.{type(self).__name__}", reason)
            return super().forward(out0, out1)
        group = world() if self.gather_distributed else None
        positive, of_views, samples = log_sums(out0, out1, self.temperature, group=group)
        weighted = positive
        loss, like = positive.new_zeros(()), in_dtype_of(out0, out0.new_empty(1), self._log_sum)
        for view, log_sum in enumerate(of_views):
            if self.weight_fn:
                anchor, partner = (
                    F.normalize(x, dim=1) for x in ((out0, out1), (out1, out0))[view]
                )
                weights = self.weight_fn(anchor, partner)
                weighted, like = positive * weights, like.to((like * weights).dtype)
            loss = loss + 0.5 * (log_sum - weighted).sum() / samples
        return loss.to(like.dtype)

    def _log_sum(self, z: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(torch.einsum("nc,mc->nm", z, z) / self.temperature, 1)


class DCLWLoss(DCLLoss, peer.DCLWLoss):
    """Works as `lightly.loss.DCLWLoss`: ``DCLWLoss(temperature, sigma, gather_distributed)``.

    Call it with ``(out0, out1)``, ``[n, d]`` each.
    """


class BarlowTwinsLoss(peer.BarlowTwinsLoss):
    """Works as `lightly.loss.BarlowTwinsLoss` does.

    Build it with ``BarlowTwinsLoss(lambda_param, gather_distributed)`` and call it with
    ``(z_a, z_b)``, ``[n, d]`` each.
    """

    def forward(self, z_a: torch.Tensor, z_b: torch.Tensor) -> torch.Tensor:
        reason = mismatch(z_a, z_b)
        if reason is None and (z_a.shape != z_b.shape or len(z_a) < 2):
            reason = f"views of {len(z_a)} and {len(z_b)} samples"
        if reason is None and (
            getattr(self.lambda_param, "ndim", 0) > 0 or number(self.lambda_param, z_a) is None
        ):
            reason = f"lambda_param={self.lambda_param}"
        if reason is not None:
            falls_back("lightly.BarlowTwinsLoss", reason)
            return super().forward(z_a, z_b)
        group = world() if self.gather_distributed else None
        try:
            loss = barlow_twins_loss(z_a, z_b, number(self.lambda_param, z_a), group=group)
        except UnevenShards:
            # Every rank comes here, for all know the numbers of rows of all.
            falls_back("lightly.BarlowTwinsLoss", "ranks with different numbers of samples")
            return super().forward(z_a, z_b)
        loss = in_dtype_of(z_a, loss, lambda z: (z[:, :1].T @ z[:, :1]).pow(2).sum())
        return loss.to((loss.detach() * self.lambda_param).dtype)


patch = patching(
    __name__,
    {
        peer.BarlowTwinsLoss: BarlowTwinsLoss,
        peer.DCLLoss: DCLLoss,
        peer.DCLWLoss: DCLWLoss,
        peer.DirectCLRLoss: DirectCLRLoss,
        peer.NTXentLoss: NTXentLoss,
    },
)
