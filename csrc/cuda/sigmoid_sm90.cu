#include "products_sm90.cuh"
#include "sigmoid_kernels.cuh"

namespace fused_contrastive {
const SigmoidKernels BF16_SM90_SIGMOID = sigmoid_kernels<Warpgroup<bf16>>();
const SigmoidKernels F16_SM90_SIGMOID = sigmoid_kernels<Warpgroup<f16>>();
}  // namespace fused_contrastive
