"""The losses with one positive per row."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._cross_entropy import cross_entropy, other_equal_keys
from ._dense import both_directions, with_metrics


def nt_xent_loss(
    z1, z2, temperature=0.5, *, normalize=True, keys=None, weights=None, bias=None, label_smoothing=0.0, margin=0.0,
    hardness=0.0, tau_plus=0.0, reduction="mean", metrics=False,
):  # fmt: skip
    """NT-Xent (Chen et al. 2020, eq. 1): cross entropy of each row of ``[z1; z2]`` against all others, the other view as target."""
    z = torch.cat([z1.flatten(1), z2.flatten(1)])
    z = F.normalize(z, dim=1) if normalize else z
    n = z.shape[0]
    keys, weights, bias = (None if x is None else x.repeat(2) for x in (keys, weights, bias))
    similarities = z @ z.T
    plain = similarities / temperature
    target = torch.arange(n, device=z.device).roll(n // 2)
    excluded = torch.eye(n, dtype=torch.bool, device=z.device)
    loss, logits = cross_entropy(
        plain, target, excluded=excluded if keys is None else other_equal_keys(keys, keys, target), bias=bias,
        scale=1 / temperature, similarities=similarities, label_smoothing=label_smoothing, margin=margin,
        hardness=hardness, tau_plus=tau_plus,
    )  # fmt: skip
    return with_metrics(
        loss,
        reduction,
        logits,
        target,
        metrics,
        plain=similarities if normalize else plain,
        weights=weights,
    )


def info_nce_loss(
    query, positive_key, negative_keys=None, temperature=0.1, *, negative_mode="unpaired", normalize=True,
    symmetric=False, keys=None, weights=None, bias=None, label_smoothing=0.0, margin=0.0, hardness=0.0, tau_plus=0.0,
    reduction="mean", metrics=False,
):  # fmt: skip
    """InfoNCE (van den Oord et al. 2018, eq. 4): in-batch, with a shared queue, with both, or with negatives of each row's own."""
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
        "excluded": other_equal_keys(own, keys, target), "bias": bias, "scale": 1 / temperature, "margin": margin,
        "label_smoothing": label_smoothing, "hardness": hardness, "tau_plus": tau_plus,
    }  # fmt: skip
    shown = similarities if normalize else plain
    forward = cross_entropy(plain, target, similarities=similarities, **options)
    if not symmetric:
        return with_metrics(
            forward[0], reduction, forward[1], target, metrics, plain=shown, weights=weights
        )
    backward = cross_entropy(plain.T, target, similarities=similarities.T, **options)
    return both_directions(forward, backward, reduction, target, metrics, shown, weights)


def clip_loss(
    image_features, text_features, logit_scale, logit_bias=None, *, keys=None, weights=None, bias=None, label_smoothing=0.0,
    margin=0.0, hardness=0.0, reduction="mean", metrics=False,
):  # fmt: skip
    """CLIP (Radford et al. 2021, figure 3): cross entropy of both directions, averaged; nothing is normalised inside."""
    plain = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        plain = plain + logit_bias
    similarities = image_features @ text_features.T if hardness else plain
    target = torch.arange(len(plain), device=plain.device)
    of_images, of_texts = bias if isinstance(bias, tuple) else (bias, bias)
    options = {
        "excluded": other_equal_keys(keys, keys, target), "scale": logit_scale, "margin": margin,
        "label_smoothing": label_smoothing, "hardness": hardness,
    }  # fmt: skip
    forward = cross_entropy(plain, target, bias=of_texts, similarities=similarities, **options)
    backward = cross_entropy(
        plain.T, target, bias=of_images, similarities=similarities.T, **options
    )
    return both_directions(forward, backward, reduction, target, metrics, plain, weights)


def n_pairs_loss(
    anchors, positives, target=None, *, normalize=True, keys=None, weights=None, bias=None, label_smoothing=0.0,
    margin=0.0, reduction="mean", metrics=False,
):  # fmt: skip
    """N-pairs (Sohn 2016): cross entropy of anchor-positive similarities against `target` (an index vector or the identity)."""
    if normalize:
        anchors, positives = F.normalize(anchors, dim=1), F.normalize(positives, dim=1)
    plain = anchors @ positives.T
    if target is None:
        target = torch.arange(len(plain), device=plain.device)
    elif target.dim() == 2:
        target = target.argmax(1)
    excluded = other_equal_keys(None if keys is None else keys[target], keys, target)
    loss, logits = cross_entropy(
        plain, target, excluded=excluded, bias=bias, label_smoothing=label_smoothing, margin=margin
    )
    return with_metrics(loss, reduction, logits, target, metrics, plain=plain, weights=weights)


def cpc_loss(predictions, latents, *, keys=None, weights=None, reduction="mean"):
    """CPC (van den Oord et al. 2018): for every step k, predictions against the latents of the batch; ``(loss, accuracy)``."""
    logits = predictions @ latents.transpose(1, 2)
    steps, B, _ = logits.shape
    target = torch.arange(B, device=logits.device)
    excluded = other_equal_keys(keys, keys, target)
    logits = logits if excluded is None else logits.masked_fill(excluded, float("-inf"))
    target, weights = target.expand(steps, B), None if weights is None else weights.expand(steps, B)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(
        target.shape
    )
    loss, metrics = with_metrics(loss, reduction, logits, target, True, weights=weights)
    return loss, metrics["accuracy"]
