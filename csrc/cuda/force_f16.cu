#include "force_kernels.cuh"

namespace fused_contrastive {
const ForceKernels F16_FORCE = force_kernels<f16>();
}
