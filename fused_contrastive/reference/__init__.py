"""The textbook eager losses: dense, any device, any float dtype. The specification, and the baseline of every benchmark.

Each function has the signature of its fused counterpart in losses/, less ``backend``.
"""

from .dense import both_directions, masked_logsumexp, maximum, reduce, similarity, similarity_logsumexp, with_metrics
from .pairs import clip_loss, cpc_loss, info_nce_loss, n_pairs_loss, nt_xent_loss

__all__ = [
    "both_directions",
    "clip_loss",
    "cpc_loss",
    "info_nce_loss",
    "masked_logsumexp",
    "maximum",
    "n_pairs_loss",
    "nt_xent_loss",
    "reduce",
    "similarity",
    "similarity_logsumexp",
    "with_metrics",
]
