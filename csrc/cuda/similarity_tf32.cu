#include "similarity_kernels.cuh"

namespace fused_contrastive {
const TileKernels TF32_KERNELS = tile_kernels<Tf32<false, Square>, Tf32<false, SmallRows>>();
}
