// Warpgroup products of sm_90a, both operands from shared memory (nvcc 13.0's assembler mishandles register operands).
// Same accumulator layout, same chunks as products.cuh: their swizzle is the hardware's 64-byte mode, so the same main
// loop feeds both.
#pragma once

#include "products.cuh"
#include "warpgroup.cuh"

namespace fused_contrastive {

// bfloat16 or float16, 128 x 128 per block: two warpgroups of 64 rows. One step of products stays in flight across the
// barrier. 128 x 128 tiles do 64 flops per byte read from L2, whose 5.5 TB/s bound them to 350 TF/s of 790. Predicted
// for pair_reduce and pair_weight at D >= 256: 300 TF/s. More takes larger tiles or loads shared by a cluster.
template <class T>
struct Warpgroup : Shape<128, 128, 8, 1> {
  using Element = T;
  using Acc = float;
  static constexpr int BLOCKS = 2, IN_FLIGHT = 1;

  static __device__ void publish() { proxy_fence(); }

  static __device__ void multiply(float (&s)[2][16][2], const unsigned char* a, int row, const unsigned char* b, int) {
    const uint64_t rows = descriptor(a + row / 64 * 64 * CHUNK), columns = descriptor(b);
    warpgroup_fence();
    warpgroup_mma(s, rows, columns, T{});
    warpgroup_mma(s, rows + 2, columns + 2, T{});  // 32 bytes on
    warpgroup_commit();
    warpgroup_wait<IN_FLIGHT>();
  }

  static __device__ void finish(float (&s)[2][16][2]) {
    warpgroup_wait<0>();
    warpgroup_settle(s);
  }
};

}  // namespace fused_contrastive
