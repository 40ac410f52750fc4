"""nn.Module shells of the losses: the function's options as constructor arguments, a learnable temperature on request."""

from .force import ContrastiveForceLoss, DriftLoss
from .pairs import ClipLoss, CPCLoss, InfoNCELoss, NPairsLoss, NTXentLoss

__all__ = ["CPCLoss", "ClipLoss", "ContrastiveForceLoss", "DriftLoss", "InfoNCELoss", "NPairsLoss", "NTXentLoss"]
