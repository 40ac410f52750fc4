#include "sigmoid_kernels.cuh"

namespace fused_contrastive {
const SigmoidKernels BF16_SIGMOID = sigmoid_kernels<Half<bf16, Square>>();
}
