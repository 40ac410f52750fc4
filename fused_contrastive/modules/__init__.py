"""nn.Module shells of the losses: the function's options as constructor arguments, a learnable temperature on request."""

from .force import ContrastiveForceLoss, DriftLoss
from .pairs import ClipLoss, CPCLoss, InfoNCELoss, NPairsLoss, NTXentLoss
from .ranking import DistillClipLoss, MultipleNegativesRankingLoss

__all__ = [
    "CPCLoss",
    "ClipLoss",
    "ContrastiveForceLoss",
    "DistillClipLoss",
    "DriftLoss",
    "InfoNCELoss",
    "MultipleNegativesRankingLoss",
    "NPairsLoss",
    "NTXentLoss",
]
