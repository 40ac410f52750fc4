"""Contrastive losses in O(N D) memory: the N x N similarity matrix is never stored."""

from .backends.dispatch import backends, use_backend
from .grad_cache import cached_step
from .heatmap import similarity_heatmap
from .losses import (
    barlow_twins_loss,
    clip_loss,
    correlation_loss,
    cpc_loss,
    dcl_loss,
    dclw_loss,
    distill_clip_loss,
    info_nce_loss,
    multiple_negatives_ranking_loss,
    n_pairs_loss,
    nt_xent_loss,
    siglip_loss,
    sup_con_loss,
)
from .losses.drift import drift_field, drift_loss
from .losses.force import contrastive_force, contrastive_force_loss
from .losses.logsumexp import similarity_logsumexp
from .memory_bank import MemoryBank
from .modules import (
    BarlowTwinsLoss,
    ClipLoss,
    ContrastiveForceLoss,
    CorrelationLoss,
    CPCLoss,
    DCLLoss,
    DCLWLoss,
    DistillClipLoss,
    DriftLoss,
    InfoNCELoss,
    MultipleNegativesRankingLoss,
    NPairsLoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
)

__version__ = "0.1.0"
__all__ = [
    "BarlowTwinsLoss",
    "CPCLoss",
    "ClipLoss",
    "ContrastiveForceLoss",
    "CorrelationLoss",
    "DCLLoss",
    "DCLWLoss",
    "DistillClipLoss",
    "DriftLoss",
    "InfoNCELoss",
    "MemoryBank",
    "MultipleNegativesRankingLoss",
    "NPairsLoss",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
    "backends",
    "barlow_twins_loss",
    "cached_step",
    "clip_loss",
    "contrastive_force",
    "contrastive_force_loss",
    "correlation_loss",
    "cpc_loss",
    "dcl_loss",
    "dclw_loss",
    "distill_clip_loss",
    "drift_field",
    "drift_loss",
    "info_nce_loss",
    "multiple_negatives_ranking_loss",
    "n_pairs_loss",
    "nt_xent_loss",
    "siglip_loss",
    "similarity_heatmap",
    "similarity_logsumexp",
    "sup_con_loss",
    "use_backend",
]
