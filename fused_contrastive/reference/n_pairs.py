"""The dense form of N-pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import cross_entropy, other_equal_keys
from ._reduction import with_metrics


def n_pairs_loss(
    anchors,
    positives,
    target=None,
    *,
    normalize=True,
    keys=None,
    weights=None,
    bias=None,
    label_smoothing=0.0,
    margin=0.0,
    reduction="mean",
    metrics=False,
):
    """N-pairs (Sohn 2016): cross entropy of anchors ``[B, D]`` against positives ``[B, D]``.

    `target` is an index vector ``[B]`` or the identity ``[B, B]``.
    """
    if normalize:
        anchors, positives = F.normalize(anchors, dim=1), F.normalize(positives, dim=1)
    plain = anchors @ positives.T
    if target is None:
        target = torch.arange(len(plain), device=plain.device)
    elif target.dim() == 2:
        target = target.argmax(1)
    excluded = other_equal_keys(None if keys is None else keys[target], keys, target)
    loss, logits, lse = cross_entropy(
        plain, target, excluded=excluded, bias=bias, label_smoothing=label_smoothing, margin=margin
    )
    more = {"plain": plain, "lse": lse, "weights": weights}
    return with_metrics(loss, reduction, logits, target, metrics, **more)
