#include "similarity_kernels.cuh"

namespace fused_contrastive {
const TileKernels BF16_KERNELS = tile_kernels<Half<bf16, Square>, Half<bf16, Rows>>();
}
