"""nn.Module shells of the losses: the function's options as constructor arguments, a learnable temperature on request."""

from .correlation import BarlowTwinsLoss, CorrelationLoss
from .force import ContrastiveForceLoss, DriftLoss
from .pairs import ClipLoss, CPCLoss, InfoNCELoss, NPairsLoss, NTXentLoss

__all__ = [
    "BarlowTwinsLoss",
    "CPCLoss",
    "ClipLoss",
    "ContrastiveForceLoss",
    "CorrelationLoss",
    "DriftLoss",
    "InfoNCELoss",
    "NPairsLoss",
    "NTXentLoss",
]
