"""The losses with one positive per row."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .dense import both_directions, with_metrics


def nt_xent_loss(z1, z2, temperature=0.5, *, normalize=True, reduction="mean", metrics=False):
    """NT-Xent (Chen et al. 2020, eq. 1): cross entropy of each row of ``[z1; z2]`` against all others, the other view as target."""
    z = torch.cat([z1.flatten(1), z2.flatten(1)])
    z = F.normalize(z, dim=1) if normalize else z
    n = z.shape[0]
    logits = (z @ z.T / temperature).masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), float("-inf"))
    target = torch.arange(n, device=z.device).roll(n // 2)
    loss = F.cross_entropy(logits, target, reduction="none")
    cosine = (lambda s: s * temperature) if normalize else None
    return with_metrics(loss, reduction, logits, target, metrics, cosine)


def info_nce_loss(
    query, positive_key, negative_keys=None, temperature=0.1, *, negative_mode="unpaired", normalize=True,
    symmetric=False, reduction="mean", metrics=False,
):  # fmt: skip
    """InfoNCE (van den Oord et al. 2018, eq. 4): in-batch, with a shared queue, or with negatives of each row's own."""
    if normalize:
        query, positive_key = F.normalize(query, dim=-1), F.normalize(positive_key, dim=-1)
        negative_keys = None if negative_keys is None else F.normalize(negative_keys, dim=-1)
    if negative_keys is None:
        logits = query @ positive_key.T / temperature
        target = torch.arange(len(query), device=query.device)
    else:
        positive = (query * positive_key).sum(1, keepdim=True)
        if negative_mode == "unpaired":
            negative = query @ negative_keys.T
        else:
            negative = (query.unsqueeze(1) @ negative_keys.transpose(1, 2)).squeeze(1)
        logits = torch.cat([positive, negative], dim=1) / temperature
        target = torch.zeros(len(query), dtype=torch.long, device=query.device)
    cosine = (lambda s: s * temperature) if normalize else None
    forward = F.cross_entropy(logits, target, reduction="none")
    if not symmetric:
        return with_metrics(forward, reduction, logits, target, metrics, cosine)
    backward = F.cross_entropy(logits.T, target, reduction="none")
    return both_directions(forward, backward, reduction, logits, target, metrics, cosine)


def clip_loss(image_features, text_features, logit_scale, logit_bias=None, *, reduction="mean", metrics=False):
    """CLIP (Radford et al. 2021, figure 3): cross entropy of both directions, averaged; nothing is normalised inside."""
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    target = torch.arange(len(logits), device=logits.device)
    forward = F.cross_entropy(logits, target, reduction="none")
    backward = F.cross_entropy(logits.T, target, reduction="none")
    return both_directions(forward, backward, reduction, logits, target, metrics)


def n_pairs_loss(anchors, positives, target=None, *, normalize=True, reduction="mean", metrics=False):
    """N-pairs (Sohn 2016): cross entropy of anchor-positive similarities against `target` (an index vector or the identity)."""
    if normalize:
        anchors, positives = F.normalize(anchors, dim=1), F.normalize(positives, dim=1)
    logits = anchors @ positives.T
    if target is None:
        target = torch.arange(len(logits), device=logits.device)
    elif target.dim() == 2:
        target = target.argmax(1)
    loss = F.cross_entropy(logits, target, reduction="none")
    return with_metrics(loss, reduction, logits, target, metrics)


def cpc_loss(predictions, latents, *, reduction="mean"):
    """CPC (van den Oord et al. 2018): for every step k, predictions against the latents of the batch; ``(loss, accuracy)``."""
    logits = predictions @ latents.transpose(1, 2)
    target = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    loss, metrics = with_metrics(loss, reduction, logits, target, True)
    return loss, metrics["accuracy"]
