"""InfoNCE: in-batch negatives, a shared queue, or negatives of each row's own."""

from __future__ import annotations

import torch

from .. import checks, dispatch, reference
from ..functions import Result, inverse_scale, similarity
from .common import finish, one_positive, rounded, two_sets


def info_nce_loss(
    query: torch.Tensor,
    positive_key: torch.Tensor,
    negative_keys: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 0.1,
    *,
    negative_mode: str = "unpaired",
    normalize: bool = True,
    symmetric: bool = False,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4).

    Args:
        query, positive_key: ``[N, D]``; row i of one is the positive of row i of the other.
        negative_keys: None: the other rows' positives are the negatives; ``[K, D]`` with ``negative_mode="unpaired"``: a queue shared by all
            rows (MoCo), other positives are no negatives; ``[N, K, D]`` with ``"paired"``: each row's own negatives.
        normalize: cosine similarities, else raw dot products.
        symmetric: the mean of both directions (in-batch only).

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.
    """
    two_sets("query", query, "positive_key", positive_key)
    checks.number("temperature", temperature, query.device, divisor=True)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.choice("negative_mode", negative_mode, ("unpaired", "paired"))
    if negative_keys is not None:
        if symmetric:
            raise ValueError("symmetric=True needs in-batch negatives: negative_keys must be None")
        paired = negative_mode == "paired"
        checks.embeddings("negative_keys", negative_keys, dim=3 if paired else 2, like=("query", query))
        if negative_keys.shape[-1] != query.shape[-1] or (paired and len(negative_keys) != len(query)):
            expected = f"[{len(query)}, K, {query.shape[1]}]" if paired else f"[K, {query.shape[1]}]"
            raise ValueError(f"negative_keys must have shape {expected}, got {tuple(negative_keys.shape)}")
    if dispatch.is_eager(backend):
        return reference.info_nce_loss(
            query, positive_key, negative_keys, temperature, negative_mode=negative_mode, normalize=normalize,
            symmetric=symmetric, reduction=reduction, metrics=metrics,
        )  # fmt: skip
    scale = inverse_scale(temperature, query)
    cosine = scale if normalize else None
    if negative_keys is None:
        result = similarity(
            query, positive_key, scale, kind="not_self", positive=0, normalize=normalize, columns=symmetric,
            extrema=metrics, backend=backend,
        )  # fmt: skip
        return finish(result.loss, reduction, metrics, result, result.pos, cosine, symmetric)
    query, positive_key, negative_keys = (rounded(x, normalize) for x in (query, positive_key, negative_keys))
    pos = scale * (query.to(scale.dtype) * positive_key.to(scale.dtype)).sum(-1)
    if negative_mode == "paired":
        result = similarity(query.unsqueeze(1), negative_keys, scale, extrema=metrics, backend=backend)
        result = Result(*(None if x is None else x.squeeze(-1) for x in result))
    else:
        result = similarity(query, negative_keys, scale, extrema=metrics, backend=backend)
    return finish(one_positive(result.rows, pos), reduction, metrics, result, pos, cosine)
