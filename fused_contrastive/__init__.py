"""Contrastive losses in O(N D) memory: the N x N similarity matrix is never stored."""

from types import ModuleType as _ModuleType

from .backends.dispatch import backends as backends
from .backends.dispatch import set_backend as set_backend
from .backends.dispatch import use_backend as use_backend
from .losses.clip import ClipLoss as ClipLoss
from .losses.clip import clip_loss as clip_loss
from .losses.correlation import BarlowTwinsLoss as BarlowTwinsLoss
from .losses.correlation import CorrelationLoss as CorrelationLoss
from .losses.correlation import barlow_twins_loss as barlow_twins_loss
from .losses.correlation import correlation_loss as correlation_loss
from .losses.cpc import CPCLoss as CPCLoss
from .losses.cpc import cpc_loss as cpc_loss
from .losses.dcl import DCLLoss as DCLLoss
from .losses.dcl import DCLWLoss as DCLWLoss
from .losses.dcl import dcl_loss as dcl_loss
from .losses.dcl import dclw_loss as dclw_loss
from .losses.distill_clip import DistillClipLoss as DistillClipLoss
from .losses.distill_clip import distill_clip_loss as distill_clip_loss
from .losses.drift import DriftLoss as DriftLoss
from .losses.drift import drift_field as drift_field
from .losses.drift import drift_loss as drift_loss
from .losses.force import ContrastiveForceLoss as ContrastiveForceLoss
from .losses.force import contrastive_force as contrastive_force
from .losses.force import contrastive_force_loss as contrastive_force_loss
from .losses.guided_info_nce import GuidedInfoNCELoss as GuidedInfoNCELoss
from .losses.guided_info_nce import guided_info_nce_loss as guided_info_nce_loss
from .losses.info_nce import InfoNCELoss as InfoNCELoss
from .losses.info_nce import info_nce_loss as info_nce_loss
from .losses.logsumexp import similarity_logsumexp as similarity_logsumexp
from .losses.n_pairs import NPairsLoss as NPairsLoss
from .losses.n_pairs import n_pairs_loss as n_pairs_loss
from .losses.nt_xent import NTXentLoss as NTXentLoss
from .losses.nt_xent import nt_xent_loss as nt_xent_loss
from .losses.ranking import MultipleNegativesRankingLoss as MultipleNegativesRankingLoss
from .losses.ranking import multiple_negatives_ranking_loss as multiple_negatives_ranking_loss
from .losses.siglip import SigLipLoss as SigLipLoss
from .losses.siglip import siglip_loss as siglip_loss
from .losses.sup_con import SupConLoss as SupConLoss
from .losses.sup_con import sup_con_loss as sup_con_loss
from .memory_bank import MemoryBank as MemoryBank
from .tools.grad_cache import cached_forward as cached_forward
from .tools.grad_cache import cached_step as cached_step
from .tools.heatmap import similarity_heatmap as similarity_heatmap

__version__ = "0.1.0"

# The names above are the public ones, so that a new name is written once.
__all__ = sorted(
    name
    for name, value in globals().items()
    if not name.startswith("_") and not isinstance(value, _ModuleType)
)
