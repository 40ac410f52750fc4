#include "pair_reduce.cuh"
#include "pair_weight.cuh"
#include "products_sm90.cuh"
#include "similarity.h"

namespace fused_contrastive {
const PairKernels BF16_SM90_KERNELS = {launch_pair_reduce<Warpgroup<bf16>>,
                                       launch_pair_weight<Warpgroup<bf16>>};
const PairKernels F16_SM90_KERNELS = {launch_pair_reduce<Warpgroup<f16>>,
                                      launch_pair_weight<Warpgroup<f16>>};
}  // namespace fused_contrastive
