"""The Triton backend. Installed as ``fused_contrastive.triton_kernels``; without a usable Triton it imports and says why it refuses."""

from .guard import missing, refusal, status

__all__ = ["refusal", "status"]

if missing() is None:
    from .configs import autotune
    from .similarity import similarity_backward, similarity_forward

    __all__ += ["autotune", "similarity_backward", "similarity_forward"]
