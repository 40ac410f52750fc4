#include "sigmoid_kernels.cuh"

namespace fused_contrastive {
const SigmoidKernels TF32_SIGMOID = sigmoid_kernels<Tf32<false, Square>>();
}
