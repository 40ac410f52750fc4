#include "sigmoid_kernels.cuh"

namespace fused_contrastive {
const SigmoidKernels TF32X3_SIGMOID = sigmoid_kernels<Tf32<true, Square>>();
}
