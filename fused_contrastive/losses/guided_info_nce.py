"""InfoNCE whose false negatives a guide leaves out, without a matrix of pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .. import checks, reference
from ..autograd._formulas import refuse_export, refuse_transforms
from ..autograd.guided import GuidedRows, GuidedTotal
from ..dtypes import matrix_dtype
from ..ops import guided as ops
from ..scalars import inverse_scale
from ._arguments import (
    asks_for_eager,
    check_negatives,
    check_settings,
    check_temperature,
    check_vectors,
    two_sets,
)
from ._comparison import dot, exact_rows
from ._help import complete
from ._module import TemperatureLoss
from ._reduction import one_positive, ratio, reduce

MARGINS = ("absolute", "relative")


class Guide(NamedTuple):
    """A guide's features of a batch as they are compared, and which candidates it leaves out."""

    query: torch.Tensor | None  # [M, E]; None: the similarities of the model itself guide
    docs: torch.Tensor | None  # [C, E]
    margin: float
    margin_strategy: str
    contrast_queries: bool
    contrast_positives: bool
    self_pairs: bool = False


def guided_loss(
    query: torch.Tensor,  # [M, D] as compared: `exact_rows`
    docs: torch.Tensor,  # [C, D]; the first are positives
    scale: torch.Tensor,  # []
    guide: Guide,
    dtype: torch.dtype,  # of the products' operands
    *,
    positives: int | None = None,
    offset: int = 0,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """The loss of queries, the positive of which is document ``offset + i``: ops/guided.py.

    Args:
        positives: how many documents are positives; None: as many as there are queries.
    """
    M = query.shape[0]
    if weights is not None and not guide.contrast_queries:
        # A query that does not count is nobody's candidate, and may hold anything.
        query = query.masked_fill((weights == 0).unsqueeze(1), 0.0)
    problem = ops.Guided(
        query=query,
        docs=docs,
        scale=scale,
        guide_query=guide.query,
        guide_docs=guide.docs,
        positives=M if positives is None else positives,
        offset=offset,
        contrast_queries=guide.contrast_queries,
        contrast_positives=guide.contrast_positives,
        self_pairs=guide.self_pairs,
        margin=float(guide.margin),
        relative=guide.margin_strategy == "relative",
        dtype=dtype,
    )
    refuse_transforms(*problem[:5])
    refuse_export(*problem[:3])
    pos = scale * dot(query, docs[offset : offset + M], scale.dtype)
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in problem[:3])
    learned = weights is not None and weights.requires_grad
    if reduction == "none" or learned or not trained:
        loss = one_positive(GuidedRows.apply(*problem), pos)
        return reduce(loss, reduction, weights)
    weights = torch.ones_like(pos) if weights is None else weights.to(pos.dtype)
    total, *_ = GuidedTotal.apply(weights, pos, *problem)
    return total if reduction == "sum" else ratio(total, weights.sum())


def guided_info_nce_loss(
    query: torch.Tensor,
    positive_key: torch.Tensor,
    negative_keys: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 0.01,
    *,
    guide_query: torch.Tensor | None = None,
    guide_positive_key: torch.Tensor | None = None,
    guide_negative_keys: torch.Tensor | None = None,
    margin: float = 0.0,
    margin_strategy: str = "absolute",
    contrast_queries: bool = True,
    contrast_positives: bool = True,
    normalize: bool = True,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
):
    """GISTEmbed: InfoNCE without the negatives that a guide finds too similar to the query.

    The guide is another model, whose features are constants (Solatorio 2024, arXiv:2402.16829, eq.
    6). The candidates of query i are all positives and negatives, the other queries, and the other
    positives, which are compared with its own positive. Let ``t_i`` be the guide's similarity of
    query i and its positive. A candidate whose similarity by the guide is above ``t_i - margin`` is
    a false negative, and is left out. The mask is computed on the way and never stored.

    Without a guide the model's own similarities decide. With ``margin=-0.1`` this is the mask of
    Qwen3-Embedding (Zhang et al. 2025, arXiv:2506.05176, eq. 2).

    Args:
        query, positive_key: ``[N, D]``. Row i of one is the positive of row i of the other.
        negative_keys: ``[K, D]``, negatives of all queries; None: there are none.
        guide_query, guide_positive_key, guide_negative_keys: ``[N, E]``, ``[N, E]`` and ``[K, E]``,
            the guide's features of the same samples, whose cosines are compared. None: the
            similarities of the model itself are the guide's.
        margin: how far below that of the positive a similarity must be. A negative one lets
            negatives be more similar than the positive.
        margin_strategy: ``"absolute"``, or ``"relative"`` for a limit of ``t_i - margin |t_i|``.
        contrast_queries: the other queries are candidates, too.
        contrast_positives: the other positives, compared with the query's own, are candidates.
        weights: ``[N]``, one for each query; see `fused_contrastive.losses`.
        backend: ``"eager"`` for the dense form. All others are one streaming form in torch
            operations.

    Returns:
        ``[N]`` with ``reduction="none"``, else a scalar.

    >>> import torch, fused_contrastive
    >>> query = torch.eye(4)
    >>> key = torch.eye(4)[[0, 1, 2, 2]]
    >>> guide = {"guide_query": key, "guide_positive_key": key}
    >>> loss = fused_contrastive.guided_info_nce_loss(query, key, temperature=0.5, **guide)
    >>> round(loss.item(), 4)
    1.2319
    """
    two_sets("query", query, "positive_key", positive_key)
    N, D = query.shape
    check_temperature(temperature, query.device)
    if negative_keys is not None:
        check_negatives(negative_keys)
        _documents("negative_keys", negative_keys, D, ("query", query))
    check_settings(
        reduction=reduction,
        contrast_queries=contrast_queries,
        contrast_positives=contrast_positives,
        normalize=normalize,
    )
    check_margin(margin, margin_strategy)
    check_guide(query, negative_keys, guide_query, guide_positive_key, guide_negative_keys)
    check_vectors(query, N, (N,), weights=weights)
    if asks_for_eager(backend):
        return reference.guided_info_nce_loss(
            query,
            positive_key,
            negative_keys,
            temperature,
            guide_query=guide_query,
            guide_positive_key=guide_positive_key,
            guide_negative_keys=guide_negative_keys,
            margin=margin,
            margin_strategy=margin_strategy,
            contrast_queries=contrast_queries,
            contrast_positives=contrast_positives,
            normalize=normalize,
            weights=weights,
            reduction=reduction,
        )
    scale, dtype = inverse_scale(temperature, query), matrix_dtype(query)
    rows, docs = (exact_rows(x, normalize) for x in (query, _together(positive_key, negative_keys)))
    of_rows = of_docs = None
    if guide_query is not None:
        with torch.no_grad():
            of_rows, of_docs = (
                torch.nn.functional.normalize(x.to(rows.dtype), dim=-1)
                for x in (guide_query, _together(guide_positive_key, guide_negative_keys))
            )
    settings = margin, margin_strategy, contrast_queries, contrast_positives
    guide = Guide(of_rows, of_docs, *settings)
    return guided_loss(rows, docs, scale, guide, dtype, weights=weights, reduction=reduction)


def _together(positives: torch.Tensor, negatives: torch.Tensor | None) -> torch.Tensor:
    return positives if negatives is None else torch.cat([positives, negatives])


def _documents(name: str, x, width: int, like: tuple) -> None:
    """Check rows ``[K, width]``."""
    checks.embeddings(name, x, dim=2, like=like)
    if x.shape[1] != width:
        raise ValueError(f"{name} must have shape [K, {width}], got {tuple(x.shape)}")


def check_margin(margin, margin_strategy) -> None:
    """Raise ValueError or TypeError that names the argument that is wrong."""
    checks.interval("margin", margin, -float("inf"), float("inf"))
    checks.choice("margin_strategy", margin_strategy, MARGINS)


def check_guide(query, negative_keys, guide_query, guide_positive_key, guide_negative_keys) -> None:
    """Check that the guide has features of all samples, or of none."""
    guide = {
        "guide_query": (guide_query, query),
        "guide_positive_key": (guide_positive_key, query),
        "guide_negative_keys": (guide_negative_keys, negative_keys),
    }
    if all(x is None for x, _ in guide.values()):
        return
    for name, (x, of_model) in guide.items():
        if of_model is None:
            if x is not None:
                raise ValueError(f"{name} must be None, because negative_keys are None")
            continue
        if x is None:
            raise ValueError(f"{name} must be given, because the guide's other features are")
        checks.embeddings(name, x, dim=2)
        if x.device != query.device:
            raise ValueError(f"{name} must be on {query.device}, got {x.device}")
        width, rows = guide_query.shape[1], of_model.shape[0]
        if x.shape != (rows, width):
            raise ValueError(f"{name} must have shape [{rows}, {width}], got {tuple(x.shape)}")


complete(guided_info_nce_loss)


class GuidedInfoNCELoss(TemperatureLoss):
    """Module form of `guided_info_nce_loss`.

    Call ``GuidedInfoNCELoss(temperature)(query, positive_key, negative_keys)``, with the guide's
    features as keyword arguments.

    >>> import torch, fused_contrastive
    >>> loss = fused_contrastive.GuidedInfoNCELoss(temperature=0.5, margin=-0.1)
    >>> round(loss(torch.eye(4), torch.eye(4)).item(), 4)
    0.7955
    """

    def __init__(
        self,
        temperature=0.01,
        *,
        margin=0.0,
        margin_strategy="absolute",
        contrast_queries=True,
        contrast_positives=True,
        normalize=True,
        reduction="mean",
        backend=None,
        learnable=False,
    ):
        check_margin(margin, margin_strategy)
        super().__init__(
            temperature,
            learnable,
            margin=margin,
            margin_strategy=margin_strategy,
            contrast_queries=contrast_queries,
            contrast_positives=contrast_positives,
            normalize=normalize,
            reduction=reduction,
            backend=backend,
        )

    def forward(
        self,
        query: torch.Tensor,
        positive_key: torch.Tensor,
        negative_keys: torch.Tensor | None = None,
        *,
        guide_query=None,
        guide_positive_key=None,
        guide_negative_keys=None,
        weights=None,
    ):
        return guided_info_nce_loss(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            guide_query=guide_query,
            guide_positive_key=guide_positive_key,
            guide_negative_keys=guide_negative_keys,
            weights=weights,
            **self.options,
        )
