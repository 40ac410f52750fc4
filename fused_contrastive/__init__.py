"""Contrastive losses in O(N D) memory: the N x N similarity matrix is never stored."""

from .dispatch import backends, use_backend
from .drift import drift_field, drift_loss
from .force import contrastive_force, contrastive_force_loss
from .functions import similarity_logsumexp
from .losses import clip_loss, cpc_loss, info_nce_loss, n_pairs_loss, nt_xent_loss
from .modules import ClipLoss, ContrastiveForceLoss, CPCLoss, DriftLoss, InfoNCELoss, NPairsLoss, NTXentLoss
from .visualize import similarity_heatmap

__version__ = "0.1.0"
__all__ = [
    "CPCLoss",
    "ClipLoss",
    "ContrastiveForceLoss",
    "DriftLoss",
    "InfoNCELoss",
    "NPairsLoss",
    "NTXentLoss",
    "backends",
    "clip_loss",
    "contrastive_force",
    "contrastive_force_loss",
    "cpc_loss",
    "drift_field",
    "drift_loss",
    "info_nce_loss",
    "n_pairs_loss",
    "nt_xent_loss",
    "similarity_heatmap",
    "similarity_logsumexp",
    "use_backend",
]
