"""The textbook eager losses, which are dense and serve any device and any float dtype.

They are the specification of the package and the baseline of every benchmark. Each function has
the signature of its fused counterpart in the file of the same name in losses/, less ``backend``.
Nothing here imports from losses/, and losses/ takes nothing but these functions.
"""

from ._dense import masked_logsumexp, maximum, sigmoid_sum, similarity
from ._reduction import both_directions, reduce, weighted_reduce, with_metrics
from .clip import clip_loss
from .correlation import barlow_twins_loss, correlation_loss
from .cpc import cpc_loss
from .dcl import dcl_loss, dclw_loss
from .distill_clip import distill_clip_loss
from .info_nce import info_nce_loss
from .logsumexp import similarity_logsumexp
from .n_pairs import n_pairs_loss
from .nt_xent import nt_xent_loss
from .ranking import multiple_negatives_ranking_loss
from .siglip import siglip_loss
from .sup_con import sup_con_loss

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
