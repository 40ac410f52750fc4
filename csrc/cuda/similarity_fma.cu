#include "similarity_kernels.cuh"

namespace fused_contrastive {
const TileKernels FMA_KERNELS = tile_kernels<Fma<Square>, Fma<SmallRows>>();
}
