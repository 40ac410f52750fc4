#include "similarity_kernels.cuh"

namespace fused_contrastive {
const TileKernels F64_KERNELS = tile_kernels<F64<SmallSquare>, F64<SmallRows>>();
}
