"""The textbook eager losses: dense, any device, any float dtype. The specification, and the baseline of every benchmark.

Each function has the signature of its fused counterpart in losses/, less ``backend``.
"""

from ._dense import (
    both_directions,
    masked_logsumexp,
    maximum,
    reduce,
    similarity,
    similarity_logsumexp,
    with_metrics,
)
from .correlation import barlow_twins_loss, correlation_loss
from .labels import dcl_loss, dclw_loss, sup_con_loss, weighted_reduce
from .pairs import clip_loss, cpc_loss, info_nce_loss, n_pairs_loss, nt_xent_loss
from .ranking import distill_clip_loss, multiple_negatives_ranking_loss
from .sigmoid import siglip_loss, sigmoid_sum

__all__ = [
    "barlow_twins_loss",
    "both_directions",
    "clip_loss",
    "correlation_loss",
    "cpc_loss",
    "dcl_loss",
    "dclw_loss",
    "distill_clip_loss",
    "info_nce_loss",
    "masked_logsumexp",
    "maximum",
    "multiple_negatives_ranking_loss",
    "n_pairs_loss",
    "nt_xent_loss",
    "reduce",
    "siglip_loss",
    "sigmoid_sum",
    "similarity",
    "similarity_logsumexp",
    "sup_con_loss",
    "weighted_reduce",
    "with_metrics",
]
