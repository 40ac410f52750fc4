"""The dense form of InfoNCE."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import cross_entropy, other_equal_keys
from ._reduction import both_directions, with_metrics


def info_nce_loss(
    query,
    positive_key,
    negative_keys=None,
    temperature=0.1,
    *,
    negative_mode="unpaired",
    normalize=True,
    symmetric=False,
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
    """InfoNCE (van den Oord et al. 2018, eq. 4).

    Negatives are in the batch, or in a shared queue ``[K, D]``, or in both, or each row has its own
    ``[N, K, D]``. query and positive_key are ``[N, D]``.
    """
    if normalize:
        query, positive_key = F.normalize(query, dim=-1), F.normalize(positive_key, dim=-1)
        negative_keys = None if negative_keys is None else F.normalize(negative_keys, dim=-1)
    N = len(query)
    own = None if keys is None else keys[:, 0] if keys.dim() == 2 else keys[:N]
    if negative_keys is None or negative_mode == "in_batch":
        columns = (
            positive_key if negative_keys is None else torch.cat([positive_key, negative_keys])
        )
        similarities = query @ columns.T
        target = torch.arange(N, device=query.device)
    else:
        positive = (query * positive_key).sum(1, keepdim=True)
        if negative_mode == "unpaired":
            negative = query @ negative_keys.T
            keys, bias = (
                None if x is None else torch.cat([x[:N, None], x[N:].expand(N, -1)], dim=1)
                for x in (keys, bias)
            )
        else:
            negative = (query.unsqueeze(1) @ negative_keys.transpose(1, 2)).squeeze(1)
        similarities = torch.cat([positive, negative], dim=1)
        target = torch.zeros(N, dtype=torch.long, device=query.device)
    plain = similarities / temperature
    options = {
        "excluded": other_equal_keys(own, keys, target),
        "bias": bias,
        "scale": 1 / temperature,
        "margin": margin,
        "label_smoothing": label_smoothing,
        "hardness": hardness,
        "tau_plus": tau_plus,
    }
    shown = similarities if normalize else plain
    forward = cross_entropy(plain, target, similarities=similarities, **options)
    if not symmetric:
        loss, logits, lse = forward
        more = {"plain": shown, "lse": lse, "weights": weights}
        return with_metrics(loss, reduction, logits, target, metrics, **more)
    backward = cross_entropy(plain.T, target, similarities=similarities.T, **options)
    return both_directions(
        forward, backward, reduction, target, metrics, plain=shown, weights=weights
    )
