"""The Triton backend, which is installed as ``fused_contrastive.triton_kernels``.

Without a usable Triton it imports and says why it refuses.

The functions that every backend has are here. `similarity.py`, `sigmoid.py` and `force.py` launch
the kernels of a family. The order in which those of the first two run is in backends/tiled, shared
with CUDA. The kernels of the similarity family are in files of their own: `prepare.py`,
`pair_reduce.py`, `fused_rows.py`, `pair_weight.py` and `finish.py`. Those of the others are in
`sigmoid_kernels.py`, `force_kernels.py` and, for small groups, `force_group.py`. Device functions
that several kernels call are in `tile_math.py` and `force_math.py`.

Around the kernels, `launch.py` is the one place that starts one. `configs.py` and
`force_configs.py` choose the tiles. `support.py` says what the backend needs and refuses, and
`hashes.py` tells which kernels have changed.
"""

from __future__ import annotations

from torch import Tensor

from ..problem import (
    Forward,
    Gradients,
    Needs,
    Problem,
    Saved,
    SigmoidForward,
    SigmoidProblem,
    SigmoidSaved,
    Upstream,
    Wanted,
)
from .support import missing, refusal, status

__all__ = ["refusal", "status"]


if missing() is None:
    from ..backends.tiled import sigmoid as tiled_sigmoid
    from ..backends.tiled import similarity as tiled_similarity
    from . import sigmoid, similarity
    from .configs import autotune
    from .force import distance_gradient, distance_sums, force_forward

    __all__ += ["autotune", "distance_gradient", "distance_sums", "force_forward"]
    __all__ += ["sigmoid_backward", "sigmoid_forward", "similarity_backward", "similarity_forward"]

    def similarity_forward(problem: Problem, wanted: Wanted) -> Forward:
        """The forward pass of the similarity family; ops/similarity.py is its contract."""
        return tiled_similarity.forward(similarity, problem, wanted)

    def similarity_backward(
        upstream: Upstream, problem: Problem, saved: Saved, need: Needs
    ) -> Gradients:
        """The backward pass of the similarity family; ops/similarity.py is its contract."""
        return tiled_similarity.backward(similarity, upstream, problem, saved, need)

    def sigmoid_forward(problem: SigmoidProblem, extrema: bool) -> SigmoidForward:
        """The forward pass of the sigmoid family; ops/sigmoid.py is its contract."""
        return tiled_sigmoid.forward(sigmoid, problem, extrema)

    def sigmoid_backward(
        g_rows: Tensor,  # [G, M]
        problem: SigmoidProblem,
        saved: SigmoidSaved,
        need: Needs,
    ) -> Gradients:
        """The backward pass of the sigmoid family; ops/sigmoid.py is its contract."""
        return tiled_sigmoid.backward(sigmoid, g_rows, problem, saved, need)
