"""Multiple negatives ranking: queries against documents.

On request, queries or documents are compared among themselves, too.
"""

from __future__ import annotations

import math

import torch

from .. import checks, reference
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
from ._comparison import Comparison, exact_rows
from ._cross_entropy import in_batch
from ._module import TemperatureLoss
from ._over_ranks import NOT_GIVEN, over_ranks
from ._reduction import Direction, Outcome, merged, one_positive

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = ("all_negatives", "in_batch_negatives", "hard_negatives")


@over_ranks
def multiple_negatives_ranking_loss(
    query: torch.Tensor,
    positive_key: torch.Tensor,
    negative_keys: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 0.05,
    *,
    directions: tuple[str, ...] = ("query_to_doc",),
    partition: str = "joint",
    normalize: bool = True,
    keys: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    hardness: float = 0.0,
    hardness_mode: str = "all_negatives",
    reduction: str = "mean",
    metrics: bool = False,
    group=NOT_GIVEN,
    strategy: str = "auto",
    backend: str | None = None,
):
    """Multiple negatives ranking loss (Henderson et al. 2017, arXiv:1705.00652, sec. 4.4).

    It has the extensions of sentence-transformers. They are several directions (Li et al. 2023,
    arXiv:2308.03281) and hardness weighting (Lan et al. 2025, arXiv:2503.04812, eq. 5). The
    documents are the positives and the hard negatives of all queries. Every document is a candidate
    of every query. With ``s_ij = cos(query_i, document_j) / temperature`` and ``"query_to_doc"``
    alone the loss of query i is ``log sum_j exp s_ij - s_ii``.

    Args:
        query, positive_key: ``[N, D]``. Row i of one is the positive of row i of the other.
        negative_keys: ``[N, H, D]``, the H hard negatives of each query; None: there are none.
        directions: ``"query_to_doc"``, which is required, and any of ``"query_to_query"`` (the
            other queries), ``"doc_to_query"`` (the positive against all queries, its own among
            them) and ``"doc_to_doc"`` (the positive against the other queries' documents).
        partition: ``"joint"`` is one softmax over all directions; with ``"doc_to_query"`` the
            positive pair is in it twice. ``"per_direction"`` is the mean of one softmax for each
            direction. It takes ``"query_to_doc"`` and ``"doc_to_query"`` only.
        normalize: compare cosines instead of raw dot products.
        keys, weights: ``[N]``, one for each query; see `fused_contrastive.losses`, as for
            `hardness`. Documents have the key of their query, whose own hard negatives always stay.
        hardness_mode: the negatives of ``"query_to_doc"`` that `hardness` is for. They are
            ``"all_negatives"``, ``"in_batch_negatives"`` (the other queries' documents) or
            ``"hard_negatives"`` (the query's own `negative_keys`).
        group, strategy: the ranks that share the batch; see `fused_contrastive.losses`.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.

    >>> import torch, fused_contrastive
    >>> query = torch.eye(4)
    >>> loss = fused_contrastive.multiple_negatives_ranking_loss(query, query, temperature=0.5)
    >>> round(loss.item(), 4)
    0.3408
    >>> loss = fused_contrastive.multiple_negatives_ranking_loss(
    ...     query, query, temperature=0.5, directions=("query_to_doc", "doc_to_query")
    ... )
    >>> round(loss.item(), 4)
    1.0339
    """
    two_sets("query", query, "positive_key", positive_key)
    check_temperature(temperature, query.device)
    check_settings(reduction=reduction, normalize=normalize, metrics=metrics)
    check_directions(directions, partition, hardness_mode)
    N, D = query.shape
    if negative_keys is not None:
        check_negatives(negative_keys)
        checks.embeddings("negative_keys", negative_keys, dim=3, like=("query", query))
        if negative_keys.shape[0] != N or negative_keys.shape[-1] != D:
            raise ValueError(
                f"negative_keys must have shape [{N}, H, {D}], got {tuple(negative_keys.shape)}"
            )
    options = check_options(hardness=hardness)
    check_vectors(query, N, (N,), keys, weights)
    operands = query, positive_key, negative_keys, temperature
    settings = {
        "directions": directions,
        "partition": partition,
        "normalize": normalize,
        "keys": keys,
        "weights": weights,
        "hardness_mode": hardness_mode,
        "reduction": reduction,
        "metrics": metrics,
    }
    if asks_for_eager(backend, group):
        return reference.multiple_negatives_ranking_loss(*operands, **settings, **options.given())
    return _fused(*operands, options, group=group, backend=backend, **settings)


def _fused(
    query,
    positive_key,
    negative_keys,
    temperature,
    options,
    *,
    group,
    backend,
    directions,
    partition,
    normalize,
    keys,
    weights,
    hardness_mode,
    reduction,
    metrics,
):
    scale = inverse_scale(temperature, query)
    to_cosine = scale if normalize else None
    N, D = query.shape
    H = 0 if negative_keys is None else negative_keys.shape[1]
    docs = positive_key
    if H:
        # Rows h·N ... (h + 1)·N - 1 of the documents are the h-th hard negative of each query.
        docs = torch.cat([positive_key, negative_keys.transpose(0, 1).reshape(H * N, D)])
    across = 0.0 if hardness_mode == "hard_negatives" else options.hardness
    of_own = 0.0 if hardness_mode == "in_batch_negatives" else options.hardness
    if set(directions) == {"query_to_doc"} and (not H or (keys is None and across == of_own)):
        outcome = in_batch(
            query,
            docs,
            scale,
            options._replace(hardness=across),
            normalize=normalize,
            keys=keys,
            metrics=metrics,
            group=group,
            backend=backend,
        )
        return outcome.reduced(reduction, metrics, weights, group)
    dtype = matrix_dtype(query)
    query, docs = exact_rows(query, normalize), exact_rows(docs, normalize)
    positive_key = docs[:N]
    queries = Comparison(query, docs, scale, dtype, backend=backend, ranks=group)
    positives = queries._replace(rows=positive_key)

    def others(compared: Comparison, **wanted):
        """The log-sum-exp with the columns of other queries than that of each row."""
        times = 1 + H if compared.columns is docs else 1
        if keys is None:
            candidates = Candidates("not_pair" if times > 1 else "not_self", stride=max(N, 1))
        else:
            key_b = None if compared.columns is None else keys.repeat(times)
            candidates = Candidates("other_key", key_a=keys, key_b=key_b)
        return compared.lse(candidates, extrema=metrics, **wanted)

    from_docs = "doc_to_query" in directions
    first = others(queries, hardness=across, columns=from_docs and not across)
    forward = [(first.rows, first.row_max)]
    if H:
        own = docs[N:].reshape(H, N, D).transpose(0, 1)
        # A query's own hard negatives are here.
        hard = queries._replace(rows=query.unsqueeze(1), columns=own, ranks=None)
        result = hard.lse(Candidates("all"), hardness=of_own, extrema=metrics)
        forward.append((result.rows.squeeze(1), result.row_max.squeeze(1) if metrics else None))
    if "query_to_query" in directions:
        result = others(queries._replace(columns=None))
        forward.append((result.rows, result.row_max))
    if "doc_to_doc" in directions:
        result = others(positives if H else positives._replace(columns=None))
        forward.append((result.rows, result.row_max))
    backward = []
    if from_docs and across:
        result = others(positives._replace(columns=query))
        backward = [(result.rows, result.row_max)]
    elif from_docs:
        backward = [(first.cols[:N], first.col_max[:N] if metrics else None)]
    pos = scale * queries.dot(positive_key)
    softmaxes = [forward + backward]
    if backward and partition == "per_direction":
        softmaxes = [forward, backward]
    # In a joint softmax the positive pair is there in both directions.
    twice = math.log(2) if backward and partition == "joint" else 0.0
    lses = [merged([lse for lse, _ in parts]) for parts in softmaxes]
    losses = [twice + one_positive(lse - twice, pos) for lse in lses]
    found = ()
    if metrics:
        largest = [torch.stack([x for _, x in parts]).amax(0) for parts in softmaxes]
        found = tuple(Direction(pos, x, lse) for x, lse in zip(largest, lses, strict=True))
    outcome = Outcome(sum(losses) / len(losses), pos, to_cosine, found)
    return outcome.reduced(reduction, metrics, weights, group)


def check_directions(directions, partition: str, hardness_mode: str) -> None:
    """Raise ValueError that names the argument that is wrong."""
    checks.choice("partition", partition, ("joint", "per_direction"))
    checks.choice("hardness_mode", hardness_mode, HARDNESS_MODES)
    if (
        not isinstance(directions, (tuple, list, set, frozenset))
        or not set(directions) <= set(DIRECTIONS)
        or "query_to_doc" not in directions
    ):
        raise ValueError(
            f"directions must be a tuple of {DIRECTIONS}, the first among them, got {directions!r}"
        )
    if partition == "per_direction" and set(directions) & {"query_to_query", "doc_to_doc"}:
        raise ValueError(
            "partition='per_direction' needs the positive pair in every direction: "
            f"only 'query_to_doc' and 'doc_to_query', got {directions!r}"
        )


class MultipleNegativesRankingLoss(TemperatureLoss):
    """Module form of `multiple_negatives_ranking_loss`.

    Call ``MultipleNegativesRankingLoss(temperature)(query, positive_key, negative_keys)``. The
    tensors `keys` and `weights` are keyword arguments of `forward`.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.MultipleNegativesRankingLoss(temperature=0.5)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    0.3408
    """

    def __init__(
        self,
        temperature=0.05,
        *,
        directions=("query_to_doc",),
        partition="joint",
        normalize=True,
        hardness=0.0,
        hardness_mode="all_negatives",
        reduction="mean",
        metrics=False,
        group=NOT_GIVEN,
        strategy="auto",
        backend=None,
        learnable=False,
        max_scale=None,
    ):
        check_directions(directions, partition, hardness_mode)
        super().__init__(
            temperature,
            learnable,
            max_scale,
            directions=directions,
            partition=partition,
            normalize=normalize,
            hardness=hardness,
            hardness_mode=hardness_mode,
            reduction=reduction,
            metrics=metrics,
            group=group,
            strategy=strategy,
            backend=backend,
        )

    def forward(
        self,
        query: torch.Tensor,
        positive_key: torch.Tensor,
        negative_keys: torch.Tensor | None = None,
        *,
        keys=None,
        weights=None,
    ):
        operands = query, positive_key, negative_keys, self.temperature
        tensors = {"keys": keys, "weights": weights}
        return multiple_negatives_ranking_loss(*operands, **tensors, **self.options)
