"""nn.Module shells of the losses: the function's options as constructor arguments, a learnable temperature on request."""

from ..losses.drift import DriftLoss
from ..losses.force import ContrastiveForceLoss
from .correlation import BarlowTwinsLoss, CorrelationLoss
from .labels import DCLLoss, DCLWLoss, SupConLoss
from .pairs import ClipLoss, CPCLoss, InfoNCELoss, NPairsLoss, NTXentLoss
from .ranking import DistillClipLoss, MultipleNegativesRankingLoss
from .siglip import SigLipLoss

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
    "MultipleNegativesRankingLoss",
    "NPairsLoss",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
]
