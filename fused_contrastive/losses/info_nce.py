"""InfoNCE: in-batch negatives, a shared queue, both, or negatives of each row's own."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..backends import dispatch
from ..dtypes import matrix_dtype
from ..scalars import inverse_scale
from ._arguments import check_options, check_vectors
from ._cross_entropy import dot, in_batch, one_direction
from ._reduction import Outcome, exact_rows, rounded, two_sets


def info_nce_loss(
    query: torch.Tensor,
    positive_key: torch.Tensor,
    negative_keys: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 0.1,
    *,
    negative_mode: str = "unpaired",
    normalize: bool = True,
    symmetric: bool = False,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    hardness: float = 0.0,
    tau_plus: float = 0.0,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4).

    Args:
        query, positive_key: ``[N, D]``; row i of one is the positive of row i of the other.
        negative_keys: None: the other rows' positives are the negatives; ``[K, D]`` with ``negative_mode="unpaired"``: a queue shared by all
            rows (MoCo), other positives are no negatives; with ``"in_batch"``: shared as well, besides the other rows' positives;
            ``[N, K, D]`` with ``"paired"``: each row's own negatives.
        normalize: cosine similarities, else raw dot products.
        symmetric: the mean of both directions (in-batch only, without `negative_keys`).
        weights: ``[N]``, of the rows; see `fused_contrastive.losses`, as for the options `label_smoothing`, `margin`, `hardness` and
            `tau_plus`.
        keys, bias: of each pair and of each negative, as the logits have them: ``[N]`` in-batch; ``[N + K]`` with shared `negative_keys`,
            the pairs first; ``[N, 1 + K]`` with ``"paired"``, the positive first. With `symmetric` a pair's bias is that of its key and
            of its query.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.
    """
    two_sets("query", query, "positive_key", positive_key)
    checks.number("temperature", temperature, query.device, divisor=True)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.flags(normalize=normalize, symmetric=symmetric, metrics=metrics)
    checks.choice("negative_mode", negative_mode, ("unpaired", "paired", "in_batch"))
    options, N = check_options(label_smoothing, margin, hardness, tau_plus), query.shape[0]
    paired, columns = negative_mode == "paired" and negative_keys is not None, (N,)
    if negative_keys is not None:
        if symmetric:
            raise ValueError("symmetric=True needs in-batch negatives: negative_keys must be None")
        checks.embeddings(
            "negative_keys", negative_keys, dim=3 if paired else 2, like=("query", query)
        )
        if negative_keys.shape[-1] != query.shape[-1] or (paired and negative_keys.shape[0] != N):
            expected = f"[{N}, K, {query.shape[1]}]" if paired else f"[K, {query.shape[1]}]"
            raise ValueError(
                f"negative_keys must have shape {expected}, got {tuple(negative_keys.shape)}"
            )
        columns = (N, 1 + negative_keys.shape[1]) if paired else (N + negative_keys.shape[0],)
    check_vectors(query, N, columns, keys, weights, bias)
    if dispatch.is_eager(backend):
        return reference.info_nce_loss(
            query, positive_key, negative_keys, temperature, negative_mode=negative_mode, normalize=normalize,
            symmetric=symmetric, keys=keys, weights=weights, bias=bias, reduction=reduction, metrics=metrics,
            **options._asdict(),
        )  # fmt: skip
    scale = inverse_scale(temperature, query)
    if negative_keys is None or negative_mode == "in_batch":
        b = positive_key if negative_keys is None else torch.cat([positive_key, negative_keys])
        outcome = in_batch(
            query, b, scale, options, normalize=normalize, both=symmetric, keys=keys,
            bias=(bias, bias) if symmetric and bias is not None else bias, metrics=metrics, backend=backend,
        )  # fmt: skip
        return outcome.reduced(reduction, metrics, weights)
    dtype, plain = matrix_dtype(query), not any(options) and keys is None and bias is None
    query, positive_key, negative_keys = (
        (rounded if plain else exact_rows)(x, normalize)
        for x in (query, positive_key, negative_keys)
    )
    product = dot(query, positive_key, scale)
    key_a, key_b = _apart(keys, N, paired)
    own_bias, bias = _apart(bias, N, paired)
    if paired:
        query, own_bias = query.unsqueeze(1), None if own_bias is None else own_bias.squeeze(1)
    loss, rank = one_direction(
        query, negative_keys, product, scale, options, ("all" if keys is None else "other_key", key_a, key_b), bias=bias,
        own_bias=own_bias, metrics=metrics, dtype=dtype, backend=backend,
    )  # fmt: skip
    outcome = Outcome(loss, scale * product, scale if normalize else None, (rank,))
    return outcome.reduced(reduction, metrics, weights)


def _apart(x, N: int, paired: bool):
    """What belongs to the pairs and to the negatives."""
    if x is None:
        return None, None
    return (x[:, :1], x[:, 1:]) if paired else (x[:N], x[N:])
