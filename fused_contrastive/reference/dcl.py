"""The dense form of DCL and DCLW."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import other_equal_keys
from ._dense import masked_logsumexp
from ._reduction import with_metrics


def dcl_loss(
    z1,
    z2,
    temperature=0.1,
    *,
    normalize=True,
    keys=None,
    weights=None,
    reduction="mean",
    metrics=False,
):
    """DCL (Yeh et al. 2022, eq. 6): NT-Xent without the positive in the denominator.

    z1 and z2 are ``[B, D]``.
    """
    return _decoupled(
        z1,
        z2,
        temperature,
        sigma=None,
        normalize=normalize,
        keys=keys,
        weights=weights,
        reduction=reduction,
        metrics=metrics,
    )


def dclw_loss(
    z1,
    z2,
    temperature=0.1,
    sigma=0.5,
    *,
    normalize=True,
    keys=None,
    weights=None,
    reduction="mean",
    metrics=False,
):
    """DCLW (Yeh et al. 2022): DCL of z1 and z2 ``[B, D]``, with weighted positives.

    The weight is ``2 - B softmax(<z1, z2> / sigma)``, a constant.
    """
    return _decoupled(
        z1,
        z2,
        temperature,
        sigma=sigma,
        normalize=normalize,
        keys=keys,
        weights=weights,
        reduction=reduction,
        metrics=metrics,
    )


def _decoupled(z1, z2, temperature, *, sigma, normalize, keys, weights, reduction, metrics):
    """Both losses; without sigma the positives have no weights."""
    if normalize:
        z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    B, z = len(z1), torch.cat([z1, z2])
    keys, weights = (None if x is None else x.repeat(2) for x in (keys, weights))
    target = torch.arange(2 * B, device=z.device).roll(B)
    excluded = torch.eye(2 * B, dtype=torch.bool, device=z.device)
    excluded = excluded if keys is None else other_equal_keys(keys, keys, target)
    logits = (z @ z.T / temperature).masked_fill(excluded, float("-inf"))
    others = logits.scatter(1, target.unsqueeze(1), float("-inf"))
    lse = masked_logsumexp(others, 1)
    positive = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    if sigma is not None:
        weight = 2 - B * ((z1 * z2).sum(1) / sigma).softmax(0).detach()
        positive = positive * torch.cat([weight, weight])
    cosine = (lambda s: s * temperature) if normalize else None
    more = {"lse": lse, "weights": weights}
    return with_metrics(lse - positive, reduction, logits, target, metrics, cosine, **more)
