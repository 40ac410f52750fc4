#include "similarity_kernels.cuh"

namespace fused_contrastive {
const TileKernels TF32X3_KERNELS = tile_kernels<Tf32<true, Square>, Tf32<true, SmallRows>>();
}
