#include "sigmoid_kernels.cuh"

namespace fused_contrastive {
const SigmoidKernels F64_SIGMOID = sigmoid_kernels<F64<SmallSquare>>();
}
