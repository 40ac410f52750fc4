"""The dense form of NT-Xent."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import cross_entropy, other_equal_keys
from ._reduction import with_metrics


def nt_xent_loss(
    z1,
    z2,
    temperature=0.5,
    *,
    normalize=True,
    keys=None,
    weights=None,
    bias=None,
    label_smoothing=0.0,
    margin=0.0,
    hardness=0.0,
    tau_plus=0.0,
    reduction="mean",
    metrics=False,
):
    """NT-Xent (Chen et al. 2020, eq. 1) of z1 and z2 ``[B, ...]``.

    It is the cross entropy of each row of ``[z1; z2]`` against all others. The target is the other
    view.
    """
    z = torch.cat([z1.flatten(1), z2.flatten(1)])
    z = F.normalize(z, dim=1) if normalize else z
    n = z.shape[0]
    keys, weights, bias = (None if x is None else x.repeat(2) for x in (keys, weights, bias))
    similarities = z @ z.T
    plain = similarities / temperature
    target = torch.arange(n, device=z.device).roll(n // 2)
    excluded = torch.eye(n, dtype=torch.bool, device=z.device)
    loss, logits, lse = cross_entropy(
        plain,
        target,
        excluded=excluded if keys is None else other_equal_keys(keys, keys, target),
        bias=bias,
        scale=1 / temperature,
        similarities=similarities,
        label_smoothing=label_smoothing,
        margin=margin,
        hardness=hardness,
        tau_plus=tau_plus,
    )
    return with_metrics(
        loss,
        reduction,
        logits,
        target,
        metrics,
        plain=similarities if normalize else plain,
        lse=lse,
        weights=weights,
    )
