"""The streaming algorithm in torch operations: O(N D) memory on any device.

It needs no compiler and no Triton. It works on row panels. A panel is a block of at most ``PANEL``
similarities (32 times that on GPUs), of consecutive rows against all columns. With one set a panel
starts at the column of its own first row. Then only half of the matrix is computed, and each tile
serves its rows and its columns. The products are library GEMMs.

One set takes N^2 D flops forward and 3 N^2 D backward. Two sets take 2 M N D and 6 M N D.
docs/maths.md has the derivations.
"""

from __future__ import annotations

import torch

from ._panel import panel_products
from .force import distance_gradient, distance_sums, force_forward
from .sigmoid import sigmoid_backward, sigmoid_forward
from .similarity import similarity_backward, similarity_forward

__all__ = [
    "distance_gradient",
    "distance_sums",
    "force_forward",
    "panel_products",
    "refusal",
    "sigmoid_backward",
    "sigmoid_forward",
    "similarity_backward",
    "similarity_forward",
    "status",
]


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """None, because this backend can serve every device and matrix dtype."""
    return None


def status() -> str:
    """What this backend can do here, as `fused_contrastive.backends` reports it."""
    return "available: any device"
