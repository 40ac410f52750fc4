"""The Triton backend. Installed as ``fused_contrastive.triton_kernels``; without a usable Triton it imports and says why it refuses."""

from .support import missing, refusal, status

__all__ = ["refusal", "status"]

FLAT = (
    "similarity_forward",
    "similarity_backward",
    "sigmoid_forward",
    "sigmoid_backward",
)
"""Functions that take the arguments of their op as they are."""

if missing() is None:
    from ..backends.panels.force import force_backward
    from .configs import autotune
    from .force import distance_gradient, distance_sums, force_forward
    from .sigmoid import sigmoid_backward, sigmoid_forward
    from .similarity import similarity_backward, similarity_forward

    __all__ += ["autotune", "distance_gradient", "distance_sums", "force_backward", "force_forward"]
    __all__ += ["sigmoid_backward", "sigmoid_forward", "similarity_backward", "similarity_forward"]
