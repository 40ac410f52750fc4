#include "sigmoid_kernels.cuh"

namespace fused_contrastive {
const SigmoidKernels F16_SIGMOID = sigmoid_kernels<Half<f16, Square>>();
}
