#include "force_kernels.cuh"

namespace fused_contrastive {
const ForceKernels F32_FORCE = force_kernels<float>();
}
