"""This model predicts what the GPU kernels reach on one H200 in bf16. It is never a measurement.

The model counts instructions and tile sizes and uses published rates of similar kernels (NOTES.md).
"""

from __future__ import annotations

from typing import NamedTuple

GIVEN = (
    "on one H200, in bf16 (the force kernels of the CUDA backend in float32), "
    "from 790 TFLOP/s for the library's products and 4.3 TB/s for a copy"
)


class Prediction(NamedTuple):
    """This is the predicted rate of one kernel at large N and this D.

    It is in TFLOP/s, and for `prepare` in GB/s. It holds in NT-Xent, for `fused_rows` in InfoNCE
    with a queue, and for sigmoid kernels in SigLIP. Force kernels are those of the CUDA backend in
    the force loss, in float32 whatever the inputs.
    """

    kernel: str
    D: int
    least: int
    most: int

    @property
    def dtype(self) -> str:
        return "fp32" if self.kernel.startswith("force_") else "bf16"

    @property
    def backends(self) -> tuple[str, ...]:
        """Returns the backends that the prediction holds for."""
        return ("cuda",) if self.kernel.startswith("force_") else ("triton", "cuda")

    @property
    def loss(self) -> str:
        if self.kernel.startswith("force_"):
            return "contrastive_force"
        if self.kernel.startswith("sigmoid_"):
            return "siglip"
        return "info_nce_queue" if self.kernel == "fused_rows" else "nt_xent"


PREDICTIONS = (
    Prediction("pair_reduce", 128, 380, 480),
    Prediction("pair_reduce", 256, 470, 600),
    Prediction("pair_reduce", 512, 430, 560),
    Prediction("pair_reduce", 1024, 450, 620),
    Prediction("pair_weight", 128, 200, 270),
    Prediction("pair_weight", 256, 350, 480),
    Prediction("pair_weight", 512, 400, 540),
    Prediction("pair_weight", 1024, 450, 600),
    *(Prediction("product", D, 650, 730) for D in (256, 512, 1024)),
    Prediction("fused_rows", 128, 400, 480),
    Prediction("prepare", 1024, 0, 4300),
    Prediction("sigmoid_reduce", 256, 420, 540),
    Prediction("sigmoid_reduce", 512, 390, 510),
    Prediction("sigmoid_weight", 256, 350, 480),
    Prediction("sigmoid_weight", 512, 400, 540),
    Prediction("force_distances", 128, 25, 32),
    Prediction("force_log_sums", 128, 18, 24),
    Prediction("force_affinities", 128, 14, 20),
    Prediction("force_weights", 128, 16, 22),
    Prediction("force_group", 256, 18, 26),
)
"""csrc/cuda/products_sm90.cuh gives the reasons for `pair_reduce` and `pair_weight`. The least is
what L2 bears, and the most is without that bound. `product` is the library's product of panels
of weights with the embeddings.

`sigmoid_reduce` does 13 float32 instructions per pair (0.10 clocks of a multiprocessor) beside its
products (0.125 clocks at D = 256). Up to D = 256 the longer of the two counts, and beyond it both.

A force kernel's flops are 3 per feature of each of its pairs: a subtraction and a multiply-add. The
machine does 33 T of such instructions per second. The predictions take 55 to 65 % of them, less
those of 5 temperatures.
"""
