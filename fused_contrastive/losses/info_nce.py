"""InfoNCE: the negatives are in the batch, in a shared queue, in both, or each row has its own."""

from __future__ import annotations

import torch

from .. import checks, reference
from ..distributed.groups import agree
from ..dtypes import matrix_dtype
from ..problem import Candidates
from ..scalars import inverse_scale
from ._arguments import (
    asks_for_eager,
    check_negatives,
    check_options,
    check_settings,
    check_temperature,
    check_vectors,
    two_sets,
)
from ._comparison import Comparison, dot, exact_rows, rounded
from ._cross_entropy import in_batch, one_direction
from ._module import TemperatureLoss
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import Outcome

NEGATIVE_MODES = ("unpaired", "paired", "in_batch")


@over_ranks
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
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4).

    With ``s = cos(query, key) / temperature`` the loss of row i is ``-log(exp s_i+ / (exp s_i+ +
    sum_k exp s_ik))``, over its positive and its negatives k.

    Args:
        query, positive_key: ``[N, D]``. Row i of one is the positive of row i of the other.
        negative_keys: with None, the other rows' positives are the negatives. ``[K, D]`` with
            ``negative_mode="unpaired"`` is a queue shared by all rows (MoCo); other positives are
            then no negatives. ``[K, D]`` with ``"in_batch"`` is shared as well, beside the other
            rows' positives. ``[N, K, D]`` with ``"paired"`` gives each row its own negatives.
        negative_mode: ``"unpaired"``, ``"in_batch"`` or ``"paired"``; see `negative_keys`.
        normalize: compare cosines instead of raw dot products.
        symmetric: the mean of both directions, without `negative_keys` only.
        weights: ``[N]``, one for each row.
        keys, bias: one for each pair and for each negative, in the order of the logits. The shape
            is ``[N]`` in-batch; ``[N + K]`` with shared `negative_keys`, the pairs first;
            ``[N, 1 + K]`` with ``"paired"``, the positive first. With `symmetric` a pair's bias is
            that of its key and of its query.
        label_smoothing, margin, hardness, tau_plus: see `fused_contrastive.losses`, as for the
            vectors above. The integer `keys` have nothing to do with the embeddings `positive_key`
            and `negative_keys`.
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`. The
            negatives of ``"in_batch"`` are then those of all ranks, while ``"paired"`` ones, and a
            queue, are this rank's own. Ranks keep equal queues (`MemoryBank.enqueue` with group).

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.

    >>> import torch, fused_contrastive
    >>> query = torch.eye(4)
    >>> round(fused_contrastive.info_nce_loss(query, query, temperature=0.5).item(), 4)
    0.3408
    >>> queue = -torch.eye(4)
    >>> fused_contrastive.info_nce_loss(query, query, queue, reduction="none").shape
    torch.Size([4])
    """
    two_sets("query", query, "positive_key", positive_key)
    check_temperature(temperature, query.device)
    check_settings(reduction=reduction, normalize=normalize, symmetric=symmetric, metrics=metrics)
    checks.choice("negative_mode", negative_mode, NEGATIVE_MODES)
    options = check_options(
        label_smoothing=label_smoothing, margin=margin, hardness=hardness, tau_plus=tau_plus
    )
    columns = _columns(query, negative_keys, negative_mode, symmetric)
    check_vectors(query, query.shape[0], columns, keys, weights, bias)
    tensors = {"keys": keys, "weights": weights, "bias": bias}
    settings = {
        "negative_mode": negative_mode,
        "normalize": normalize,
        "symmetric": symmetric,
        "reduction": reduction,
        "metrics": metrics,
    }
    operands = query, positive_key, negative_keys, temperature
    if asks_for_eager(backend, group):
        return reference.info_nce_loss(*operands, **tensors, **settings, **options.given())
    where = {"group": group, "backend": backend}
    return _fused(*operands, options, **where, **tensors, **settings)


def _columns(query, negative_keys, negative_mode: str, symmetric: bool) -> tuple[int, ...]:
    """The shape of `keys` and `bias`, after a check of `negative_keys`."""
    N, D = query.shape
    if negative_keys is None:
        return (N,)
    if symmetric:
        raise ValueError("symmetric=True needs in-batch negatives: negative_keys must be None")
    paired = negative_mode == "paired"
    like = ("query", query)
    check_negatives(negative_keys)
    shared = isinstance(negative_keys, torch.Tensor) and not paired
    if shared and not negative_keys.is_nested and negative_keys.dim() == 3:
        raise ValueError(
            "negative_keys must have shape [K, D], got "
            f"{tuple(negative_keys.shape)}: negatives of each query need negative_mode='paired'"
        )
    checks.embeddings("negative_keys", negative_keys, dim=3 if paired else 2, like=like)
    if negative_keys.shape[-1] != D or (paired and negative_keys.shape[0] != N):
        expected = f"[{N}, K, {D}]" if paired else f"[K, {D}]"
        raise ValueError(
            f"negative_keys must have shape {expected}, got {tuple(negative_keys.shape)}"
        )
    return (N, 1 + negative_keys.shape[1]) if paired else (N + negative_keys.shape[0],)


def _fused(
    query,
    positive_key,
    negative_keys,
    temperature,
    options,
    *,
    group,
    backend,
    keys,
    weights,
    bias,
    negative_mode,
    normalize,
    symmetric,
    reduction,
    metrics,
):
    scale = inverse_scale(temperature, query)
    if negative_keys is None or negative_mode == "in_batch":
        b = positive_key if negative_keys is None else torch.cat([positive_key, negative_keys])
        outcome = in_batch(
            query,
            b,
            scale,
            options,
            normalize=normalize,
            both=symmetric,
            keys=keys,
            bias=(bias, bias) if symmetric and bias is not None else bias,
            metrics=metrics,
            group=group,
            backend=backend,
        )
        return outcome.reduced(reduction, metrics, weights, group)
    N, paired, dtype = query.shape[0], negative_mode == "paired", matrix_dtype(query)
    if group is not None and not torch.compiler.is_compiling():
        # Nothing else would tell the ranks of an error, or of another call.
        agree(group, N, 0)
    # Without options the gradients of several terms need not cancel.
    as_read = rounded if not any(options) and keys is None and bias is None else exact_rows
    query, positive_key, negative_keys = (
        as_read(x, normalize) for x in (query, positive_key, negative_keys)
    )
    product = dot(query, positive_key, scale.dtype)
    key_a, key_b = _apart(keys, N, paired)
    own_bias, bias = _apart(bias, N, paired)
    if paired:
        query, own_bias = query.unsqueeze(1), None if own_bias is None else own_bias.squeeze(1)
    candidates = Candidates("all" if keys is None else "other_key", key_a=key_a, key_b=key_b)
    compared = Comparison(query, negative_keys, scale, dtype, backend=backend)
    loss, direction = one_direction(
        compared, candidates, product, options, bias=bias, own_bias=own_bias, metrics=metrics
    )
    outcome = Outcome(loss, scale * product, scale if normalize else None, (direction,))
    return outcome.reduced(reduction, metrics, weights, group)


def _apart(x, N: int, paired: bool):
    """What belongs to the pairs, and what belongs to the negatives."""
    if x is None:
        return None, None
    return (x[:, :1], x[:, 1:]) if paired else (x[:N], x[N:])


class InfoNCELoss(TemperatureLoss):
    """Module form of `info_nce_loss`.

    Call ``InfoNCELoss(temperature)(query, positive_key, negative_keys)``. The tensors `keys`,
    `weights` and `bias` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.InfoNCELoss(temperature=0.5, symmetric=True)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    0.3408
    """

    def __init__(
        self,
        temperature=0.1,
        *,
        negative_mode="unpaired",
        normalize=True,
        symmetric=False,
        label_smoothing=0.0,
        margin=0.0,
        hardness=0.0,
        tau_plus=0.0,
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        checks.choice("negative_mode", negative_mode, NEGATIVE_MODES)
        super().__init__(
            temperature,
            learnable,
            max_scale,
            negative_mode=negative_mode,
            normalize=normalize,
            symmetric=symmetric,
            label_smoothing=label_smoothing,
            margin=margin,
            hardness=hardness,
            tau_plus=tau_plus,
            reduction=reduction,
            metrics=metrics,
            backend=backend,
            group=group,
            strategy=strategy,
        )

    def forward(
        self,
        query: torch.Tensor,
        positive_key: torch.Tensor,
        negative_keys: torch.Tensor | None = None,
        *,
        keys=None,
        weights=None,
        bias=None,
    ):
        operands = query, positive_key, negative_keys, self.temperature
        return info_nce_loss(*operands, keys=keys, weights=weights, bias=bias, **self.options)
