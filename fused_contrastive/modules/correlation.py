"""Modules of the correlation losses."""

from __future__ import annotations

import torch
from torch import nn

from .. import losses
from ..collectives import check_group
from ..losses._module import own_number


class _Correlation(nn.Module):
    def __init__(self, lamb, scale_loss, group, backend):
        super().__init__()
        own_number("lamb", lamb)
        own_number("scale_loss", scale_loss)
        check_group(group)
        self.options = {"lamb": lamb, "scale_loss": scale_loss, "group": group, "backend": backend}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class CorrelationLoss(_Correlation):
    """Module form of `correlation_loss`: ``CorrelationLoss()(z1, z2)``."""

    def __init__(self, lamb=5e-3, scale_loss=0.025, *, group=None, backend=None):
        super().__init__(lamb, scale_loss, group, backend)

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return losses.correlation_loss(z1, z2, **self.options)


class BarlowTwinsLoss(_Correlation):
    """Module form of `barlow_twins_loss`: ``BarlowTwinsLoss()(z1, z2)``."""

    def __init__(self, lamb=5e-3, scale_loss=1.0, *, group=None, backend=None):
        super().__init__(lamb, scale_loss, group, backend)

    def forward(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return losses.barlow_twins_loss(z1, z2, **self.options)
