#include "sigmoid.cuh"

namespace fused_contrastive {
const SigmoidKernels BF16_SIGMOID = sigmoid_kernels<Half<bf16, Square>>();
}
