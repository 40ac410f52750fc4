"""The losses: each a few lines over functions.similarity.

Common arguments: ``temperature`` or ``logit_scale`` a number or a 0-d tensor, whose value is never read and which then gets a gradient;
``reduction`` "none", "mean" or "sum"; ``metrics=True`` returns ``(loss, {"accuracy", "positive_similarity"})``, detached, from the same
passes (accuracy: the share of rows whose positive is at least their largest other candidate; positive_similarity: the mean cosine, or the
mean logit where nothing is normalised); ``backend`` a name of `backends()`, or None. Losses are float32 (float64 for float64 inputs).
Wrong shapes, dtypes, devices or values raise ValueError or TypeError naming the argument.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import checks, dispatch, reference
from .functions import Result, as_scalar, inverse_scale, matrix_dtype, similarity


def _finish(loss, reduction, metrics, result: Result, pos, scale=None, columns=False):
    """Reduced loss, with `metrics` the dictionary; `scale` turns positive logits into cosines."""
    loss = reference.reduce(loss, reduction)
    if not metrics:
        return loss
    pos = pos.detach()
    hit = _hits(pos, result.row_max).to(loss.dtype).mean()
    if columns:
        hit = (hit + _hits(pos, result.col_max).to(loss.dtype).mean()) / 2
    mean = (pos if scale is None else pos / scale.detach()).mean()
    return loss, {"accuracy": hit, "positive_similarity": mean}


def _hits(pos: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where pos is at least the largest other logit; equal up to the rounding of differently ordered sums is equal."""
    slack = 16 * torch.finfo(pos.dtype).eps * torch.maximum(pos.abs(), other.abs())
    return (pos >= other) | (pos + slack >= other) & other.isfinite()


def _one_positive(lse: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    """``softplus(lse - pos)``; NaN, as cross entropy, where a logit is infinite."""
    return F.softplus(lse - pos + 0 * (pos + lse.clamp_min(0)), threshold=40)


def _two_sets(name_a, a, name_b, b, dim=2):
    checks.embeddings(name_a, a, dim=dim)
    checks.embeddings(name_b, b, dim=dim, like=(name_a, a))
    checks.same_shape(name_b, b, name_a, a)


def nt_xent_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float | torch.Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """NT-Xent, the SimCLR loss (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    Args:
        z1, z2: two views ``[B, ...]``, trailing dimensions flattened; row i of one is the positive of row i of the other.
        normalize: cosine similarities (rows divided by ``max(|x|, 1e-12)``), else raw dot products.

    Returns:
        ``[2B]`` ordered ``[z1; z2]`` with ``reduction="none"``, else a scalar.
    """
    checks.embeddings("z1", z1, at_least=2)
    checks.embeddings("z2", z2, at_least=2, like=("z1", z1))
    checks.same_shape("z2", z2, "z1", z1)
    checks.number("temperature", temperature, z1.device, divisor=True)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if dispatch.is_eager(backend):
        return reference.nt_xent_loss(z1, z2, temperature, normalize=normalize, reduction=reduction, metrics=metrics)
    z = torch.cat([z1.flatten(1), z2.flatten(1)])
    B, scale = z1.shape[0], inverse_scale(temperature, z)
    result = similarity(
        z,
        None,
        scale,
        kind="not_pair",
        stride=max(B, 1),
        positive=B,
        normalize=normalize,
        extrema=metrics,
        backend=backend,
    )
    return _finish(result.loss, reduction, metrics, result, result.pos, scale if normalize else None)


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
    _two_sets("query", query, "positive_key", positive_key)
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
        return _finish(result.loss, reduction, metrics, result, result.pos, cosine, symmetric)
    query, positive_key, negative_keys = (_rounded(x, normalize) for x in (query, positive_key, negative_keys))
    pos = scale * (query.to(scale.dtype) * positive_key.to(scale.dtype)).sum(-1)
    if negative_mode == "paired":
        result = similarity(query.unsqueeze(1), negative_keys, scale, extrema=metrics, backend=backend)
        result = Result(*(None if x is None else x.squeeze(-1) for x in result))
    else:
        result = similarity(query, negative_keys, scale, extrema=metrics, backend=backend)
    return _finish(_one_positive(result.rows, pos), reduction, metrics, result, pos, cosine)


def _rounded(x: torch.Tensor, normalize: bool) -> torch.Tensor:
    """x, normalised in its accumulation dtype where asked, in the matrix dtype: what the products read."""
    if not normalize:
        return x.to(matrix_dtype(x))
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1).to(matrix_dtype(x))


def clip_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: float | torch.Tensor,
    logit_bias: float | torch.Tensor | None = None,
    *,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """The CLIP loss (Radford et al. 2021, arXiv:2103.00020, figure 3): the mean of both directions' cross entropies.

    Args:
        image_features, text_features: ``[N, D]``, normalised by the caller; nothing is normalised inside.
        logit_scale: multiplies the dot products (1 / temperature; already exponentiated).
        logit_bias: a scalar added to every logit: the loss does not depend on it and its gradient is 0.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.
    """
    _two_sets("image_features", image_features, "text_features", text_features)
    checks.number("logit_scale", logit_scale, image_features.device)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if logit_bias is not None:
        checks.number("logit_bias", logit_bias, image_features.device)
    if dispatch.is_eager(backend):
        return reference.clip_loss(
            image_features, text_features, logit_scale, logit_bias, reduction=reduction, metrics=metrics
        )
    result = similarity(
        image_features, text_features, as_scalar(logit_scale, image_features), kind="not_self", positive=0, columns=True,
        extrema=metrics, backend=backend,
    )  # fmt: skip
    loss, pos = result.loss, result.pos
    if logit_bias is None:
        return _finish(loss, reduction, metrics, result, pos, columns=True)
    logit_bias = as_scalar(logit_bias, image_features)
    reduced = _finish(loss + 0.0 * logit_bias, reduction, metrics, result, pos, columns=True)
    if metrics:
        reduced[1]["positive_similarity"] = reduced[1]["positive_similarity"] + logit_bias.detach()
    return reduced


def n_pairs_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """N-pairs loss (Sohn 2016): cross entropy of each anchor's similarities to all positives; rows only, no temperature.

    Args:
        anchors, positives: ``[B, D]``.
        target: ``[B]`` integer column of each anchor's positive, or the ``[B, B]`` identity matrix; None: the same row. Its values are
            checked, except inside torch.compile.
        normalize: cosine similarities, else raw dot products.

    Returns:
        ``[B]`` with ``reduction="none"``, else a scalar.
    """
    _two_sets("anchors", anchors, "positives", positives)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if target is not None:
        target = _target_indices(target, anchors)
    if dispatch.is_eager(backend):
        return reference.n_pairs_loss(
            anchors, positives, target, normalize=normalize, reduction=reduction, metrics=metrics
        )
    scale = as_scalar(1.0, anchors)
    if target is None:
        result = similarity(
            anchors,
            positives,
            scale,
            kind="not_self",
            positive=0,
            normalize=normalize,
            extrema=metrics,
            backend=backend,
        )
        return _finish(result.loss, reduction, metrics, result, result.pos)
    anchors, positives = _rounded(anchors, normalize), _rounded(positives, normalize)
    columns = torch.arange(len(positives), device=positives.device)
    result = similarity(
        anchors, positives, scale, kind="other_key", key_a=target, key_b=columns, extrema=metrics, backend=backend
    )
    pos = (anchors.to(scale.dtype) * positives.index_select(0, target).to(scale.dtype)).sum(-1)
    return _finish(_one_positive(result.rows, pos), reduction, metrics, result, pos)


def _target_indices(target, anchors: torch.Tensor) -> torch.Tensor | None:
    """`target` as an index vector; None where it is the identity."""
    B = len(anchors)
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.device != anchors.device:
        raise ValueError(f"target must be on the device of anchors ({anchors.device}), got {target.device}")
    if target.shape == (B, B) and target.dim() == 2:
        if not torch.compiler.is_compiling() and not torch.equal(
            target, torch.eye(B, dtype=target.dtype, device=target.device)
        ):
            raise ValueError("target must be the identity where it is a matrix; pass other pairings as an index vector")
        return None
    if target.shape != (B,) or not checks.is_integer(target):
        raise ValueError(
            f"target must be an integer vector of shape [{B}] or the [{B}, {B}] identity, "
            f"got {target.dtype}, shape {tuple(target.shape)}"
        )
    if not torch.compiler.is_compiling() and B and not bool(((target >= 0) & (target < B)).all()):
        raise ValueError(f"target must hold columns in [0, {B})")
    return target.to(torch.int64)


def cpc_loss(
    predictions: torch.Tensor, latents: torch.Tensor, *, reduction: str = "mean", backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPC loss (van den Oord et al. 2018, arXiv:1807.03748, eqs. 3-4): raw dot products, one softmax per step over the batch.

    Args:
        predictions, latents: ``[K, B, D]``, the K predicted and true latents of B sequences.

    Returns:
        ``(loss, accuracy)``: ``[K, B]`` with ``reduction="none"``, else a scalar, its mean over K·B; and the top-1 accuracy over K·B.
    """
    _two_sets("predictions", predictions, "latents", latents, dim=3)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    if dispatch.is_eager(backend):
        return reference.cpc_loss(predictions, latents, reduction=reduction)
    result = similarity(
        predictions, latents, as_scalar(1.0, predictions), kind="not_self", positive=0, extrema=True, backend=backend
    )
    loss, metrics = _finish(result.loss, reduction, True, result, result.pos)
    return loss, metrics["accuracy"]
