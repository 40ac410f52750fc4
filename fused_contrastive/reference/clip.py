"""The dense form of CLIP."""

from __future__ import annotations

import torch

from ._cross_entropy import cross_entropy, other_equal_keys
from ._labelled import kept, with_labels
from ._reduction import both_directions


def clip_loss(
    image_features,
    text_features,
    logit_scale,
    logit_bias=None,
    *,
    labels=None,
    ignore_index=None,
    keys=None,
    weights=None,
    bias=None,
    label_smoothing=0.0,
    margin=0.0,
    hardness=0.0,
    reduction="mean",
    metrics=False,
):
    """CLIP (Radford et al. 2021, figure 3): the mean of the cross entropies of both directions.

    Nothing is normalised inside. Both sets of features are ``[N, D]``. With labels the loss is
    UniCL's (Yang et al. 2022, eqs. 3 and 4), and the sets may have different numbers of rows.
    """
    if labels is not None:
        labels = labels if isinstance(labels, tuple) else (labels, labels)
        weights = weights if isinstance(weights, tuple) else (weights, weights)
        sets = zip((image_features, text_features), labels, strict=True)
        image_features, text_features = (kept(x, of_x, ignore_index) for x, of_x in sets)
    plain = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        plain = plain + logit_bias
    if labels is not None:
        settings = {"reduction": reduction, "metrics": metrics, "weights": weights}
        return with_labels(plain, labels, ignore_index, **settings)
    similarities = image_features @ text_features.T if hardness else plain
    target = torch.arange(len(plain), device=plain.device)
    of_images, of_texts = bias if isinstance(bias, tuple) else (bias, bias)
    options = {
        "excluded": other_equal_keys(keys, keys, target),
        "scale": logit_scale,
        "margin": margin,
        "label_smoothing": label_smoothing,
        "hardness": hardness,
    }
    forward = cross_entropy(plain, target, bias=of_texts, similarities=similarities, **options)
    backward = cross_entropy(
        plain.T, target, bias=of_images, similarities=similarities.T, **options
    )
    return both_directions(
        forward, backward, reduction, target, metrics, plain=plain, weights=weights
    )
