"""N-pairs: each anchor against all positives."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..backends import dispatch
from ..scalars import as_scalar
from ._arguments import check_options, check_vectors
from ._cross_entropy import in_batch
from ._reduction import two_sets


def n_pairs_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    margin: float = 0.0,
    reduction: str = "mean",
    metrics: bool = False,
    backend: str | None = None,
):
    """N-pairs loss (Sohn 2016): cross entropy of each anchor's similarities to all positives; rows only, no temperature.

    Args:
        anchors, positives: ``[B, D]``.
        target: ``[B]`` integer column of each anchor's positive, or the ``[B, B]`` identity matrix; None: the same row. Its values are
            checked, except inside torch.compile and torch.func's transforms.
        normalize: cosine similarities, else raw dot products.
        keys, bias: ``[B]``, of the positives, as columns (a row has the key of its positive); `weights`: ``[B]``, of the anchors. See
            `fused_contrastive.losses`, as for the options `label_smoothing` and `margin`.

    Returns:
        ``[B]`` with ``reduction="none"``, else a scalar.
    """
    two_sets("anchors", anchors, "positives", positives)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.flags(normalize=normalize, metrics=metrics)
    options, B = check_options(label_smoothing, margin), anchors.shape[0]
    check_vectors(anchors, B, (B,), keys, weights, bias)
    if target is not None:
        target = _target_indices(target, anchors)
    if dispatch.is_eager(backend):
        return reference.n_pairs_loss(
            anchors, positives, target, normalize=normalize, keys=keys, weights=weights, bias=bias,
            label_smoothing=label_smoothing, margin=margin, reduction=reduction, metrics=metrics,
        )  # fmt: skip
    outcome = in_batch(
        anchors, positives, as_scalar(1.0, anchors), options, normalize=normalize, target=target, keys=keys, bias=bias,
        metrics=metrics, backend=backend,
    )  # fmt: skip
    return outcome.reduced(reduction, metrics, weights)


def _target_indices(target, anchors: torch.Tensor) -> torch.Tensor | None:
    """`target` as an index vector; None where it is the identity."""
    B = anchors.shape[0]
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.device != anchors.device:
        raise ValueError(
            f"target must be on the device of anchors ({anchors.device}), got {target.device}"
        )
    if target.shape == (B, B) and target.dim() == 2:
        if checks.readable() and not torch.equal(
            target, torch.eye(B, dtype=target.dtype, device=target.device)
        ):
            raise ValueError(
                "target must be the identity where it is a matrix; pass other pairings as an index vector"
            )
        return None
    if target.shape != (B,) or not checks.is_integer(target):
        raise ValueError(
            f"target must be an integer vector of shape [{B}] or the [{B}, {B}] identity, "
            f"got {target.dtype}, shape {tuple(target.shape)}"
        )
    if checks.readable() and B and not bool(((target >= 0) & (target < B)).all()):
        raise ValueError(f"target must hold columns in [0, {B})")
    return target.to(torch.int64)
