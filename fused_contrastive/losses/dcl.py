"""Decoupled contrastive losses: NT-Xent without the positive in the denominator."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..autograd.over_ranks import sum_over_ranks
from ..distributed.groups import Ranks
from ..problem import Candidates
from ..scalars import as_scalar, inverse_scale
from ._arguments import (
    asks_for_eager,
    check_settings,
    check_temperature,
    check_vectors,
    two_sets,
)
from ._comparison import Comparison, compare
from ._module import TemperatureLoss, own_number
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import Direction, Outcome


@over_ranks
def dcl_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.1,
    *,
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    metrics: bool = False,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """Decoupled contrastive loss (Yeh et al. 2022, arXiv:2110.06848, eq. 6).

    It is the log-sum-exp of the negatives less the positive. With s as in `nt_xent_loss` the loss
    of row i is ``log sum_{j != i, p(i)} exp s_ij - s_ip(i)``.

    Args:
        z1, z2: two views ``[B, D]``. Row i of one is the positive of row i of the other.
        normalize: compare cosines (rows divided by ``max(|x|, 1e-12)``) instead of raw dot
            products.
        keys, weights: ``[B]``, one for each pair; see `fused_contrastive.losses`.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar. The loss is −inf
        where there are no negatives (B = 1).

    >>> import torch, fused_contrastive
    >>> z = torch.eye(4)
    >>> round(fused_contrastive.dcl_loss(z, z, temperature=0.5).item(), 4)
    -0.2082
    >>> fused_contrastive.dcl_loss(z, z, reduction="none").shape
    torch.Size([8])
    """
    two_sets("z1", z1, "z2", z2)
    check_temperature(temperature, z1.device)
    check_settings(normalize=normalize, metrics=metrics, reduction=reduction)
    check_vectors(z1, z1.shape[0], (z1.shape[0],), keys, weights)
    tensors = {"keys": keys, "weights": weights}
    settings = {"normalize": normalize, "reduction": reduction, "metrics": metrics}
    if asks_for_eager(backend, group):
        return reference.dcl_loss(z1, z2, temperature, **tensors, **settings)
    where = {"group": group, "backend": backend}
    return _fused(z1, z2, temperature, None, **where, **tensors, **settings)


@over_ranks
def dclw_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.1,
    sigma: float | torch.Tensor = 0.5,
    *,
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    metrics: bool = False,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """`dcl_loss` with weighted positives (Yeh et al. 2022, arXiv:2110.06848).

    This is their negative von Mises-Fisher weighting. The weights are ``2 - B softmax_i(<z1_i,
    z2_i> / sigma)``, which are small where the pair is similar already. They are constants: no
    gradient flows through them, nor to `sigma`.

    Args:
        z1, z2: two views ``[B, D]``. Row i of one is the positive of row i of the other.
        sigma: a number or a 0-d tensor, whose value is never read.
        normalize: compare cosines, as in `dcl_loss`.
        keys, weights: ``[B]``, one for each pair, as in `dcl_loss`.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar. The loss is −inf
        where there are no negatives (B = 1).

    >>> import torch, fused_contrastive
    >>> z = torch.eye(4)
    >>> round(fused_contrastive.dclw_loss(z, z, temperature=0.5).item(), 4)
    -0.2082
    >>> fused_contrastive.dclw_loss(z, z, reduction="none").shape
    torch.Size([8])
    """
    two_sets("z1", z1, "z2", z2)
    check_temperature(temperature, z1.device)
    check_settings(normalize=normalize, metrics=metrics, reduction=reduction)
    check_vectors(z1, z1.shape[0], (z1.shape[0],), keys, weights)
    checks.number("sigma", sigma, z1.device, divisor=True)
    tensors = {"keys": keys, "weights": weights}
    settings = {"normalize": normalize, "reduction": reduction, "metrics": metrics}
    if asks_for_eager(backend, group):
        return reference.dclw_loss(z1, z2, temperature, sigma, **tensors, **settings)
    where = {"group": group, "backend": backend}
    return _fused(z1, z2, temperature, sigma, **where, **tensors, **settings)


def _fused(
    z1, z2, temperature, sigma, *, group, backend, keys, weights, normalize, reduction, metrics
):
    """Both losses; without a sigma all positives have the weight 1."""
    B, z = z1.shape[0], torch.cat([z1, z2])
    scale = inverse_scale(temperature, z)
    keys, weights = (None if x is None else x.repeat(2) for x in (keys, weights))
    kind = "not_pair" if keys is None else "other_key"
    compared = compare(z, None, scale, normalize=normalize, backend=backend, ranks=group)
    candidates = Candidates(kind, stride=max(B, 1), key_a=keys)
    result = compared.lse(candidates, extrema=metrics)
    z = compared.rows
    cosine = (z[:B] * z[B:]).sum(-1)
    pos = weighted = scale * cosine
    if sigma is not None:
        weighted = pos * (
            2 - relative(cosine.detach() / as_scalar(sigma, z).detach(), group, backend)
        )
    loss, pos = result.rows - torch.cat([weighted, weighted]), torch.cat([pos, pos])
    direction = Direction(pos, result.row_max, result.rows)
    outcome = Outcome(loss, pos, scale if normalize else None, (direction,))
    return outcome.reduced(reduction, metrics, weights, group)


def relative(x: torch.Tensor, group: Ranks | None, backend: str | None) -> torch.Tensor:
    """The softmax of ``x [B]`` over the rows of all ranks, times their number."""
    if group is None:
        return x.shape[0] * x.softmax(0)
    # A row of zeros has logits that are the columns' biases.
    scale, zeros = x.new_ones(()), x.new_zeros(x.shape[0] + 1, 1)
    compared = Comparison(zeros[:1], zeros[1:], scale, backend=backend, ranks=group)
    lse = compared.lse(Candidates("all"), bias=x).rows
    count = sum_over_ranks(x.new_full((), x.shape[0]), group.encode())
    return count * (x - lse).exp()


class DCLLoss(TemperatureLoss):
    """Module form of `dcl_loss`: ``DCLLoss(temperature)(z1, z2)``.

    The tensors `keys` and `weights` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.DCLLoss(temperature=0.5)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    -0.2082
    """

    def __init__(
        self,
        temperature=0.1,
        *,
        normalize=True,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        settings = {"reduction": reduction, "metrics": metrics, "backend": backend}
        settings |= {"group": group, "strategy": strategy, "normalize": normalize}
        super().__init__(temperature, learnable, max_scale, **settings)

    def forward(self, z1: torch.Tensor, z2: torch.Tensor, *, keys=None, weights=None):
        return dcl_loss(z1, z2, self.temperature, keys=keys, weights=weights, **self.options)


class DCLWLoss(TemperatureLoss):
    """Module form of `dclw_loss`: ``DCLWLoss(temperature, sigma)(z1, z2)``.

    The tensors `keys` and `weights` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.DCLWLoss(temperature=0.5, sigma=0.5)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    -0.2082
    """

    def __init__(
        self,
        temperature=0.1,
        sigma=0.5,
        *,
        normalize=True,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        own_number("sigma", sigma, divisor=True)
        settings = {"reduction": reduction, "metrics": metrics, "backend": backend}
        settings |= {"group": group, "strategy": strategy, "normalize": normalize, "sigma": sigma}
        super().__init__(temperature, learnable, max_scale, **settings)

    def forward(self, z1: torch.Tensor, z2: torch.Tensor, *, keys=None, weights=None):
        return dclw_loss(z1, z2, self.temperature, keys=keys, weights=weights, **self.options)
