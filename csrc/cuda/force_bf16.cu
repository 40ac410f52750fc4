#include "force_kernels.cuh"

namespace fused_contrastive {
const ForceKernels BF16_FORCE = force_kernels<bf16>();
}
