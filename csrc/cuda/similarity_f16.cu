#include "similarity_kernels.cuh"

namespace fused_contrastive {
const TileKernels F16_KERNELS = tile_kernels<Half<f16, Square>, Half<f16, Rows>>();
}
