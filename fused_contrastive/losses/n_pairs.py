"""N-pairs: each anchor against all positives."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..scalars import as_scalar
from ._arguments import asks_for_eager, check_options, check_settings, check_vectors, two_sets
from ._cross_entropy import in_batch
from ._module import Loss
from ._over_ranks import NOT_GIVEN, over_ranks
from ._unread import unread_columns, unread_rows


@over_ranks
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
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """N-pairs loss (Sohn 2016): the cross entropy of each anchor's similarities to all positives.

    Only the anchors are rows, and there is no temperature. With ``s_ij = cos(anchor_i,
    positive_j)`` the loss of row i is ``log sum_j exp s_ij - s_i,target(i)``.

    Args:
        anchors, positives: ``[B, D]``.
        target: ``[B]`` integers, the column of each anchor's positive, or the ``[B, B]`` identity
            matrix. With None it is the row of the same index. Values are checked, except inside
            torch.compile and torch.func's transforms. With `group` it counts this rank's columns.
        normalize: compare cosines instead of raw dot products.
        keys, bias: ``[B]``, one for each positive as a column. A row has the key of its positive.
        weights: ``[B]``, one for each anchor.
        label_smoothing, margin: see `fused_contrastive.losses`, as for the vectors above.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[B]`` with ``reduction="none"``, else a scalar.

    >>> import torch, fused_contrastive
    >>> anchors, positives = torch.eye(4), torch.eye(4)
    >>> round(fused_contrastive.n_pairs_loss(anchors, positives).item(), 4)
    0.7437
    >>> target = torch.tensor([1, 2, 3, 0])
    >>> round(fused_contrastive.n_pairs_loss(anchors, positives, target).item(), 4)
    1.7437
    """
    two_sets("anchors", anchors, "positives", positives)
    check_settings(reduction=reduction, normalize=normalize, metrics=metrics)
    options = check_options(label_smoothing=label_smoothing, margin=margin)
    check_vectors(anchors, anchors.shape[0], (anchors.shape[0],), keys, weights, bias)
    anchors, positives = unread_rows(anchors, weights), unread_columns(positives, bias)
    if target is not None:
        target = _target_indices(target, anchors)
    tensors = {"keys": keys, "weights": weights, "bias": bias}
    settings = {"normalize": normalize, "reduction": reduction, "metrics": metrics}
    if asks_for_eager(backend, group):
        return reference.n_pairs_loss(
            anchors, positives, target, **tensors, **settings, **options.given()
        )
    where = {"group": group, "backend": backend}
    return _fused(anchors, positives, target, options, **where, **tensors, **settings)


def _fused(
    anchors,
    positives,
    target,
    options,
    *,
    group,
    backend,
    keys,
    weights,
    bias,
    normalize,
    reduction,
    metrics,
):
    outcome = in_batch(
        anchors,
        positives,
        as_scalar(1.0, anchors),
        options,
        normalize=normalize,
        target=target,
        keys=keys,
        bias=bias,
        metrics=metrics,
        group=group,
        backend=backend,
    )
    return outcome.reduced(reduction, metrics, weights, group)


def _target_indices(target, anchors: torch.Tensor) -> torch.Tensor | None:
    """`target` as an index vector ``[B]``; None where it is the identity."""
    B = anchors.shape[0]
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.device != anchors.device:
        raise ValueError(
            f"target must be on the device of anchors ({anchors.device}), got {target.device}"
        )
    if target.shape == (B, B) and target.dim() == 2:
        identity = torch.eye(B, dtype=target.dtype, device=target.device)
        if checks.readable() and not torch.equal(target, identity):
            raise ValueError(
                "target must be the identity where it is a matrix; "
                "pass other pairings as an index vector"
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


class NPairsLoss(Loss):
    """Module form of `n_pairs_loss`: ``NPairsLoss()(anchors, positives)``.

    The tensors `keys`, `weights` and `bias` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> round(fused_contrastive.NPairsLoss()(torch.eye(4), torch.eye(4)).item(), 4)
    0.7437
    """

    def __init__(
        self,
        *,
        normalize=True,
        label_smoothing=0.0,
        margin=0.0,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
    ):
        options = {"label_smoothing": label_smoothing, "margin": margin}
        settings = {"reduction": reduction, "metrics": metrics, "backend": backend}
        where = {"group": group, "strategy": strategy}
        super().__init__(normalize=normalize, **options, **settings, **where)

    def forward(
        self,
        anchors: torch.Tensor,
        positives: torch.Tensor,
        target: torch.Tensor | None = None,
        *,
        keys=None,
        weights=None,
        bias=None,
    ):
        tensors = {"keys": keys, "weights": weights, "bias": bias}
        return n_pairs_loss(anchors, positives, target, **tensors, **self.options)
