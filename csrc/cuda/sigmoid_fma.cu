#include "sigmoid.cuh"

namespace fused_contrastive {
const SigmoidKernels FMA_SIGMOID = sigmoid_kernels<Fma<Square>>();
}
