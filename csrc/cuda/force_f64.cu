#include "force_kernels.cuh"

namespace fused_contrastive {
const ForceKernels F64_FORCE = force_kernels<double>();
}
