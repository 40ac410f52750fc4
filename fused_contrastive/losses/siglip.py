"""SigLIP: every image-text pair is a binary classification."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks, reference
from ..problem import Candidates
from ..scalars import as_scalar
from ._arguments import asks_for_eager, check_settings, check_vectors, two_sets
from ._comparison import Comparison
from ._module import Loss, given_once, own_number, own_scale
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import Direction, Outcome


@over_ranks
def siglip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float | torch.Tensor,
    logit_bias: float | torch.Tensor,
    *,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    metrics: bool = False,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """The SigLIP loss (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    The loss of image i is ``sum_j softplus(-y_ij (logit_scale <image_i, text_j> + logit_bias))``.
    There y is 1 for its own text and -1 for every other.

    Args:
        image_features, text_features: ``[N, D]``, normalised by the caller; nothing is normalised
            inside.
        logit_scale: multiplies the dot products (already exponentiated).
        logit_bias: added to every logit.
        keys: ``[N]`` integers. Two pairs with the same key are no negatives of each other.
        weights: ``[N]``, one for each image; see `fused_contrastive.losses`.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar. The mean is over the N images, not over
        the N^2 pairs. The accuracy is that of finding an image's text.

    >>> import torch, fused_contrastive
    >>> features = torch.eye(4)
    >>> round(fused_contrastive.siglip_loss(features, features, 2.0, -1.0).item(), 4)
    1.253
    >>> fused_contrastive.siglip_loss(features, features, 2.0, -1.0, reduction="none").shape
    torch.Size([4])
    """
    two_sets("image_features", image_features, "text_features", text_features)
    N, device = image_features.shape[0], image_features.device
    checks.number("logit_scale", logit_scale, device)
    checks.number("logit_bias", logit_bias, device)
    check_settings(reduction=reduction, metrics=metrics)
    check_vectors(image_features, N, (N,), keys, weights)
    operands = image_features, text_features, logit_scale, logit_bias
    arguments = {"keys": keys, "weights": weights, "reduction": reduction, "metrics": metrics}
    if asks_for_eager(backend, group):
        return reference.siglip_loss(*operands, **arguments)
    return _fused(*operands, group=group, backend=backend, **arguments)


def _fused(
    image_features,
    text_features,
    logit_scale,
    logit_bias,
    *,
    group,
    backend,
    keys,
    weights,
    reduction,
    metrics,
):
    scale, bias = (as_scalar(x, image_features) for x in (logit_scale, logit_bias))
    candidates = Candidates("not_self" if keys is None else "other_key", key_a=keys, key_b=keys)
    compared = Comparison(image_features, text_features, scale, backend=backend, ranks=group)
    result = compared.softplus_sum(candidates, bias, positive=0, extrema=metrics)
    direction = Direction(result.pos, result.row_max)
    outcome = Outcome(result.rows, result.pos, None, (direction,))
    return outcome.reduced(reduction, metrics, weights, group)


class SigLipLoss(Loss):
    """Module form of `siglip_loss`.

    Call ``SigLipLoss()(image_features, text_features, logit_scale, logit_bias)``. With
    ``learnable=True`` the module owns scale and bias, and `forward` takes neither:
    ``SigLipLoss(10.0, -10.0, learnable=True)(image_features, text_features)``, the paper's start.
    The parameters are ``log_logit_scale``, which starts at log(`logit_scale`), and ``logit_bias``.
    ``SigLipLoss(10.0, -10.0)`` has fixed numbers.
    The tensors `keys` and `weights` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.SigLipLoss(logit_scale=2.0, logit_bias=-1.0, learnable=True)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    1.253
    """

    def __init__(
        self,
        logit_scale=None,
        logit_bias=None,
        *,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        where = {"backend": backend, "group": group, "strategy": strategy}
        super().__init__(learnable, max_scale, reduction=reduction, metrics=metrics, **where)
        self._logit_scale = own_scale(logit_scale, self.learnable)
        self._logit_bias = logit_bias
        if logit_bias is not None:
            own_number("logit_bias", logit_bias)
        elif learnable:
            raise ValueError("logit_bias must be given to be learned, got None")
        if learnable:
            self.log_logit_scale = self.log_scale("logit_scale", logit_scale)
            self.logit_bias = nn.Parameter(torch.tensor(float(logit_bias)))

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale=None,
        logit_bias=None,
        *,
        keys=None,
        weights=None,
    ):
        example = "SigLipLoss(10.0, -10.0, learnable=True)"
        logit_scale = given_once("logit_scale", self._logit_scale, logit_scale, example)
        logit_bias = given_once("logit_bias", self._logit_bias, logit_bias, example)
        if self.learnable:
            logit_scale = self.bounded(self.learned(self.log_logit_scale)).exp()
            logit_bias = self.learned(self.logit_bias)
        operands = image_features, text_features, logit_scale, logit_bias
        return siglip_loss(*operands, keys=keys, weights=weights, **self.options)
