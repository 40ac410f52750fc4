"""Multiple negatives ranking: queries against documents, also queries against queries and documents against documents."""

from __future__ import annotations

import math

import torch

from .. import checks, reference
from ..backends import dispatch
from ..dtypes import matrix_dtype
from ..scalars import inverse_scale
from ._arguments import check_options, check_vectors
from ._cross_entropy import dot, in_batch, negatives
from ._reduction import Outcome, exact_rows, one_positive, two_sets

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = ("all_negatives", "in_batch_negatives", "hard_negatives")


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
    backend: str | None = None,
):
    """Multiple negatives ranking loss (Henderson et al. 2017, arXiv:1705.00652, sec. 4.4) with the extensions of sentence-transformers:
    several directions (Li et al. 2023, arXiv:2308.03281) and hardness weighting (Lan et al. 2025, arXiv:2503.04812, eq. 5).

    The documents are the positives and the hard negatives of all queries; all of them are candidates of every query.

    Args:
        query, positive_key: ``[N, D]``; row i of one is the positive of row i of the other.
        negative_keys: ``[N, H, D]``, the H hard negatives of each query; None: there are none.
        directions: of ``"query_to_doc"``, which is required, ``"query_to_query"`` (other queries), ``"doc_to_query"`` (the positive
            against all queries, its own among them) and ``"doc_to_doc"`` (the positive against the other queries' documents).
        partition: ``"joint"``: one softmax over all directions (with ``"doc_to_query"`` the positive pair is in it twice);
            ``"per_direction"``: the mean of one softmax for each, of ``"query_to_doc"`` and ``"doc_to_query"`` only.
        normalize: cosine similarities, else raw dot products.
        keys, weights: ``[N]``, of the queries; documents have the key of their query, whose own hard negatives always stay. See
            `fused_contrastive.losses`, as for `hardness`.
        hardness_mode: the negatives of ``"query_to_doc"`` that `hardness` is for: ``"all_negatives"``, ``"in_batch_negatives"`` (the other
            queries' documents) or ``"hard_negatives"`` (the query's own `negative_keys`).

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.
    """
    two_sets("query", query, "positive_key", positive_key)
    checks.number("temperature", temperature, query.device, divisor=True)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checks.flags(normalize=normalize, metrics=metrics)
    check_directions(directions, partition, hardness_mode)
    N, D = query.shape
    if negative_keys is not None:
        checks.embeddings("negative_keys", negative_keys, dim=3, like=("query", query))
        if negative_keys.shape[0] != N or negative_keys.shape[-1] != D:
            raise ValueError(
                f"negative_keys must have shape [{N}, H, {D}], got {tuple(negative_keys.shape)}"
            )
    options = check_options(0.0, 0.0, hardness)
    check_vectors(query, N, (N,), keys, weights, None)
    if dispatch.is_eager(backend):
        return reference.multiple_negatives_ranking_loss(
            query, positive_key, negative_keys, temperature, directions=directions, partition=partition,
            normalize=normalize, keys=keys, weights=weights, hardness=hardness, hardness_mode=hardness_mode,
            reduction=reduction, metrics=metrics,
        )  # fmt: skip
    scale = inverse_scale(temperature, query)
    H = 0 if negative_keys is None else negative_keys.shape[1]
    docs = positive_key
    if H:  # rows h·N ... (h + 1)·N - 1 of the documents are the h-th of each query
        docs = torch.cat([positive_key, negative_keys.transpose(0, 1).reshape(H * N, D)])
    across = 0.0 if hardness_mode == "hard_negatives" else hardness
    of_own = 0.0 if hardness_mode == "in_batch_negatives" else hardness
    if set(directions) == {"query_to_doc"} and (not H or (keys is None and across == of_own)):
        outcome = in_batch(
            query, docs, scale, options._replace(hardness=across), normalize=normalize, keys=keys, metrics=metrics,
            backend=backend,
        )  # fmt: skip
        return outcome.reduced(reduction, metrics, weights)
    more = {"dtype": matrix_dtype(query), "extrema": metrics, "backend": backend}
    query, docs = exact_rows(query, normalize), exact_rows(docs, normalize)
    positive_key = docs[:N]

    def others(a, b, hardness=0.0, columns=False):
        """The documents or queries b of other queries than that of each row of a; one set where b is None."""
        times = 1 if b is None else b.shape[0] // max(N, 1)
        candidates = {"kind": "not_pair" if times > 1 else "not_self", "stride": max(N, 1)}
        if keys is not None:
            candidates = {
                "kind": "other_key",
                "key_a": keys,
                "key_b": None if b is None else keys.repeat(times),
            }
        return negatives(a, b, scale, hardness, columns=columns, **candidates, **more)

    from_docs = "doc_to_query" in directions
    first = others(query, docs, across, columns=from_docs and not across)
    forward = [(first.rows, first.row_max)]
    if H:
        own = docs[N:].reshape(H, N, D).transpose(0, 1)
        result = negatives(query.unsqueeze(1), own, scale, of_own, **more)
        forward.append((result.rows.squeeze(1), result.row_max.squeeze(1) if metrics else None))
    for direction, a, b in (
        ("query_to_query", query, None),
        ("doc_to_doc", positive_key, docs if H else None),
    ):
        if direction in directions:
            result = others(a, b)
            forward.append((result.rows, result.row_max))
    backward = []
    if from_docs and across:
        result = others(positive_key, query)
        backward = [(result.rows, result.row_max)]
    elif from_docs:
        backward = [(first.cols[:N], first.col_max[:N] if metrics else None)]
    pos = scale * dot(query, positive_key, scale)
    softmaxes = (
        [forward, backward] if backward and partition == "per_direction" else [forward + backward]
    )
    twice = (
        math.log(2) if backward and partition == "joint" else 0.0
    )  # the positive pair in both directions
    losses = [
        twice + one_positive(merged([lse for lse, _ in parts]) - twice, pos) for parts in softmaxes
    ]
    ranks = ()
    if metrics:
        ranks = tuple(
            (pos, torch.stack([largest for _, largest in parts]).amax(0)) for parts in softmaxes
        )
    outcome = Outcome(sum(losses) / len(losses), pos, scale if normalize else None, ranks)
    return outcome.reduced(reduction, metrics, weights)


def merged(lses: list[torch.Tensor]) -> torch.Tensor:
    """The log-sum-exp over the union of disjoint candidates; −inf, with gradient 0, where there are none at all."""
    return lses[0] if len(lses) == 1 else reference.masked_logsumexp(torch.stack(lses), 0)


def check_directions(directions, partition: str, hardness_mode: str) -> None:
    """Raises ValueError naming the argument that is wrong."""
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
            f"partition='per_direction' needs the positive pair in every direction: only 'query_to_doc' and 'doc_to_query', "
            f"got {directions!r}"
        )
