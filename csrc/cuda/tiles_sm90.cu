#include "products_sm90.cuh"
#include "tile_kernels.cuh"

namespace fused_contrastive {
const TileKernels BF16_SM90_KERNELS = tile_kernels<Warpgroup<bf16>, Half<bf16, Rows>>();
const TileKernels F16_SM90_KERNELS = tile_kernels<Warpgroup<f16>, Half<f16, Rows>>();
}  // namespace fused_contrastive
