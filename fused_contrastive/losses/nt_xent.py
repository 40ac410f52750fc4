"""NT-Xent: two views of every sample, and all other rows are negatives."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..problem import Candidates
from ..scalars import inverse_scale
from ._arguments import (
    asks_for_eager,
    check_options,
    check_settings,
    check_temperature,
    check_vectors,
)
from ._comparison import Comparison, compare, dot
from ._cross_entropy import one_direction
from ._module import TemperatureLoss
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import Direction, Outcome


@over_ranks
def nt_xent_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.5,
    *,
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    hardness: float = 0.0,
    tau_plus: float = 0.0,
    reduction: str = "mean",
    metrics: bool = False,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """NT-Xent, the SimCLR loss (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    With ``z = [z1; z2]``, ``s_ij = cos(z_i, z_j) / temperature``, and p(i) the other view of i, the
    loss of row i is ``-log(exp s_ip(i) / sum_{j != i} exp s_ij)``.

    Args:
        z1, z2: two views ``[B, ...]``, whose trailing dimensions are flattened. Row i of one is the
            positive of row i of the other.
        normalize: compare cosines (rows divided by ``max(|x|, 1e-12)``) instead of raw dot
            products.
        keys, weights, bias: ``[B]``, one for each sample and both of its views. With a bias the set
            is no longer symmetric, and the loss takes twice as long.
        label_smoothing, margin, hardness, tau_plus: see `fused_contrastive.losses`, as for the
            vectors above.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar.

    >>> import torch, fused_contrastive
    >>> z = torch.eye(4)
    >>> round(fused_contrastive.nt_xent_loss(z, z, temperature=0.5).item(), 4)
    0.5944
    >>> fused_contrastive.nt_xent_loss(z, z, reduction="none").shape
    torch.Size([8])
    """
    checks.embeddings("z1", z1, at_least=2)
    checks.embeddings("z2", z2, at_least=2, like=("z1", z1))
    checks.same_shape("z2", z2, "z1", z1)
    check_temperature(temperature, z1.device)
    check_settings(reduction=reduction, normalize=normalize, metrics=metrics)
    options = check_options(
        label_smoothing=label_smoothing, margin=margin, hardness=hardness, tau_plus=tau_plus
    )
    check_vectors(z1, z1.shape[0], (z1.shape[0],), keys, weights, bias)
    tensors = {"keys": keys, "weights": weights, "bias": bias}
    settings = {"normalize": normalize, "reduction": reduction, "metrics": metrics}
    if asks_for_eager(backend, group):
        return reference.nt_xent_loss(z1, z2, temperature, **tensors, **settings, **options.given())
    where = {"group": group, "backend": backend}
    return _fused(z1, z2, temperature, options, **where, **tensors, **settings)


def _fused(
    z1,
    z2,
    temperature,
    options,
    *,
    group,
    backend,
    keys,
    weights,
    bias,
    normalize,
    reduction,
    metrics,
):
    B, z = z1.shape[0], torch.cat([z1.flatten(1), z2.flatten(1)])
    scale = inverse_scale(temperature, z)
    to_cosine = scale if normalize else None
    keys, weights, bias = (None if x is None else x.repeat(2) for x in (keys, weights, bias))
    kind = "not_pair" if keys is None else "other_key"
    candidates = Candidates(kind, stride=max(B, 1), key_a=keys)
    if not any(options) and bias is None:
        compared = Comparison(z, None, scale, backend=backend, ranks=group)
        result = compared.lse(candidates, positive=B, normalize=normalize, extrema=metrics)
        direction = Direction(result.pos, result.row_max, result.rows)
        outcome = Outcome(result.loss, result.pos, to_cosine, (direction,))
    else:
        compared = compare(z, None, scale, normalize=normalize, backend=backend, ranks=group)
        product = dot(compared.rows[:B], compared.rows[B:], scale.dtype).repeat(2)
        loss, direction = one_direction(
            compared, candidates, product, options, bias=bias, own_bias=bias, metrics=metrics
        )
        outcome = Outcome(loss, scale * product, to_cosine, (direction,))
    return outcome.reduced(reduction, metrics, weights, group)


class NTXentLoss(TemperatureLoss):
    """Module form of `nt_xent_loss`: ``NTXentLoss(temperature)(z1, z2)``.

    The tensors `keys`, `weights` and `bias` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.NTXentLoss(temperature=0.5, learnable=True)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    0.5944
    """

    def __init__(
        self,
        temperature=0.5,
        *,
        normalize=True,
        label_smoothing=0.0,
        margin=0.0,
        hardness=0.0,
        tau_plus=0.0,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        super().__init__(
            temperature,
            learnable,
            max_scale,
            normalize=normalize,
            label_smoothing=label_smoothing,
            margin=margin,
            hardness=hardness,
            tau_plus=tau_plus,
            reduction=reduction,
            metrics=metrics,
            backend=backend,
            group=group,
            strategy=strategy,
        )

    def forward(self, z1: torch.Tensor, z2: torch.Tensor, *, keys=None, weights=None, bias=None):
        tensors = {"keys": keys, "weights": weights, "bias": bias}
        return nt_xent_loss(z1, z2, self.temperature, **tensors, **self.options)
