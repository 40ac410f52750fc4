#include "sigmoid_kernels.cuh"

namespace fused_contrastive {
const SigmoidKernels FMA_SIGMOID = sigmoid_kernels<Fma<Square>>();
}
