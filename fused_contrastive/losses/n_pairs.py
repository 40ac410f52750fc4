"""N-pairs: each anchor against all positives."""

from __future__ import annotations

import torch

from .. import checks, dispatch, reference
from ..functions import as_scalar, similarity
from .common import finish, one_positive, rounded, two_sets


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
    two_sets("anchors", anchors, "positives", positives)
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
        return finish(result.loss, reduction, metrics, result, result.pos)
    anchors, positives = rounded(anchors, normalize), rounded(positives, normalize)
    columns = torch.arange(len(positives), device=positives.device)
    result = similarity(
        anchors, positives, scale, kind="other_key", key_a=target, key_b=columns, extrema=metrics, backend=backend
    )
    pos = (anchors.to(scale.dtype) * positives.index_select(0, target).to(scale.dtype)).sum(-1)
    return finish(one_positive(result.rows, pos), reduction, metrics, result, pos)


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
