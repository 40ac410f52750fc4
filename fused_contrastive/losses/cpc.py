"""CPC: predicted latents against true ones, with one softmax per step."""

from __future__ import annotations

import torch

from .. import reference
from ..problem import Candidates
from ..scalars import as_scalar
from ._arguments import asks_for_eager, check_settings, check_vectors, two_sets
from ._comparison import Comparison
from ._module import Loss
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import Direction, Outcome


@over_ranks
def cpc_loss(
    predictions: torch.Tensor,
    latents: torch.Tensor,
    *,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPC loss (van den Oord et al. 2018, arXiv:1807.03748, eqs. 3-4).

    The logits are raw dot products, and each step has one softmax over the batch. With ``s_ij =
    <prediction_i, latent_j>`` of a step the loss of row i is ``log sum_j exp s_ij - s_ii``.

    Args:
        predictions, latents: ``[K, B, D]``, the K predicted and true latents of B sequences.
        keys, weights: ``[B]``, one for each sequence; see `fused_contrastive.losses`.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``(loss, accuracy)``. The loss is ``[K, B]`` with ``reduction="none"``, else a scalar; its
        mean is over K·B. The accuracy is top-1, over K·B as well.

    >>> import torch, fused_contrastive
    >>> latents = torch.eye(4).expand(3, 4, 4)
    >>> loss, accuracy = fused_contrastive.cpc_loss(latents, latents)
    >>> round(loss.item(), 4), accuracy.item()
    (0.7437, 1.0)
    """
    two_sets("predictions", predictions, "latents", latents, dim=3)
    check_settings(reduction=reduction)
    check_vectors(predictions, predictions.shape[1], (predictions.shape[1],), keys, weights)
    arguments = {"keys": keys, "weights": weights, "reduction": reduction}
    if asks_for_eager(backend, group):
        return reference.cpc_loss(predictions, latents, **arguments)
    return _fused(predictions, latents, group=group, backend=backend, **arguments)


def _fused(predictions, latents, *, group, backend, keys, weights, reduction):
    candidates = Candidates("not_self" if keys is None else "other_key", key_a=keys, key_b=keys)
    where = {"backend": backend, "ranks": group}
    compared = Comparison(predictions, latents, as_scalar(1.0, predictions), **where)
    result = compared.lse(candidates, positive=0, extrema=True)
    weights = None if weights is None else weights.expand(predictions.shape[:2])
    direction = Direction(result.pos, result.row_max)
    outcome = Outcome(result.loss, result.pos, None, (direction,))
    loss, metrics = outcome.reduced(reduction, True, weights, group)
    return loss, metrics["accuracy"]


class CPCLoss(Loss):
    """Module form of `cpc_loss`: ``CPCLoss()(predictions, latents)`` returns ``(loss, accuracy)``.

    The tensors `keys` and `weights` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss, accuracy = fused_contrastive.CPCLoss()(torch.eye(4)[None], torch.eye(4)[None])
    >>> round(loss.item(), 4)
    0.7437
    """

    def __init__(self, *, reduction="mean", group=NOT_GIVEN, strategy="auto", backend=None):
        where = {"group": group, "strategy": strategy, "backend": backend}
        super().__init__(reduction=reduction, **where)

    def forward(self, predictions: torch.Tensor, latents: torch.Tensor, *, keys=None, weights=None):
        return cpc_loss(predictions, latents, keys=keys, weights=weights, **self.options)
