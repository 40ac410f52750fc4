// The warpgroup instructions of sm_90a, one wrapper each. With FUSED_CONTRASTIVE_HOST the shim defines the same names.
#pragma once

#include "instructions.cuh"

#ifdef FUSED_CONTRASTIVE_HOST
#include "warpgroup_host.h"
#else

namespace fused_contrastive {

__device__ inline void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ inline void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Orders this thread's writes to shared memory before reads by warpgroup products.
__device__ inline void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Shared-memory matrix descriptor of a chunk whose eight-row groups lie 512 bytes apart, 64-byte swizzle.
__device__ inline uint64_t descriptor(const unsigned char* chunk) {
  const uint64_t address = (shared_address(chunk) & 0x3ffff) >> 4;
  return address | uint64_t(1) << 16 | uint64_t(512 >> 4) << 32 | uint64_t(2) << 62;
}

// s += a b^T: 64 rows of a, 128 of b, 32 bytes of each. 262144 flops.
__device__ inline void warpgroup_mma(float (&s)[2][16][2], uint64_t a, uint64_t b, bf16) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1, 0, 0;"
      : "+f"(s[0][0][0]), "+f"(s[0][0][1]), "+f"(s[1][0][0]), "+f"(s[1][0][1]), "+f"(s[0][1][0]), "+f"(s[0][1][1]),
        "+f"(s[1][1][0]), "+f"(s[1][1][1]), "+f"(s[0][2][0]), "+f"(s[0][2][1]), "+f"(s[1][2][0]), "+f"(s[1][2][1]),
        "+f"(s[0][3][0]), "+f"(s[0][3][1]), "+f"(s[1][3][0]), "+f"(s[1][3][1]), "+f"(s[0][4][0]), "+f"(s[0][4][1]),
        "+f"(s[1][4][0]), "+f"(s[1][4][1]), "+f"(s[0][5][0]), "+f"(s[0][5][1]), "+f"(s[1][5][0]), "+f"(s[1][5][1]),
        "+f"(s[0][6][0]), "+f"(s[0][6][1]), "+f"(s[1][6][0]), "+f"(s[1][6][1]), "+f"(s[0][7][0]), "+f"(s[0][7][1]),
        "+f"(s[1][7][0]), "+f"(s[1][7][1]), "+f"(s[0][8][0]), "+f"(s[0][8][1]), "+f"(s[1][8][0]), "+f"(s[1][8][1]),
        "+f"(s[0][9][0]), "+f"(s[0][9][1]), "+f"(s[1][9][0]), "+f"(s[1][9][1]), "+f"(s[0][10][0]), "+f"(s[0][10][1]),
        "+f"(s[1][10][0]), "+f"(s[1][10][1]), "+f"(s[0][11][0]), "+f"(s[0][11][1]), "+f"(s[1][11][0]),
        "+f"(s[1][11][1]), "+f"(s[0][12][0]), "+f"(s[0][12][1]), "+f"(s[1][12][0]), "+f"(s[1][12][1]),
        "+f"(s[0][13][0]), "+f"(s[0][13][1]), "+f"(s[1][13][0]), "+f"(s[1][13][1]), "+f"(s[0][14][0]),
        "+f"(s[0][14][1]), "+f"(s[1][14][0]), "+f"(s[1][14][1]), "+f"(s[0][15][0]), "+f"(s[0][15][1]),
        "+f"(s[1][15][0]), "+f"(s[1][15][1])
      : "l"(a), "l"(b));
}
__device__ inline void warpgroup_mma(float (&s)[2][16][2], uint64_t a, uint64_t b, f16) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1, 0, 0;"
      : "+f"(s[0][0][0]), "+f"(s[0][0][1]), "+f"(s[1][0][0]), "+f"(s[1][0][1]), "+f"(s[0][1][0]), "+f"(s[0][1][1]),
        "+f"(s[1][1][0]), "+f"(s[1][1][1]), "+f"(s[0][2][0]), "+f"(s[0][2][1]), "+f"(s[1][2][0]), "+f"(s[1][2][1]),
        "+f"(s[0][3][0]), "+f"(s[0][3][1]), "+f"(s[1][3][0]), "+f"(s[1][3][1]), "+f"(s[0][4][0]), "+f"(s[0][4][1]),
        "+f"(s[1][4][0]), "+f"(s[1][4][1]), "+f"(s[0][5][0]), "+f"(s[0][5][1]), "+f"(s[1][5][0]), "+f"(s[1][5][1]),
        "+f"(s[0][6][0]), "+f"(s[0][6][1]), "+f"(s[1][6][0]), "+f"(s[1][6][1]), "+f"(s[0][7][0]), "+f"(s[0][7][1]),
        "+f"(s[1][7][0]), "+f"(s[1][7][1]), "+f"(s[0][8][0]), "+f"(s[0][8][1]), "+f"(s[1][8][0]), "+f"(s[1][8][1]),
        "+f"(s[0][9][0]), "+f"(s[0][9][1]), "+f"(s[1][9][0]), "+f"(s[1][9][1]), "+f"(s[0][10][0]), "+f"(s[0][10][1]),
        "+f"(s[1][10][0]), "+f"(s[1][10][1]), "+f"(s[0][11][0]), "+f"(s[0][11][1]), "+f"(s[1][11][0]),
        "+f"(s[1][11][1]), "+f"(s[0][12][0]), "+f"(s[0][12][1]), "+f"(s[1][12][0]), "+f"(s[1][12][1]),
        "+f"(s[0][13][0]), "+f"(s[0][13][1]), "+f"(s[1][13][0]), "+f"(s[1][13][1]), "+f"(s[0][14][0]),
        "+f"(s[0][14][1]), "+f"(s[1][14][0]), "+f"(s[1][14][1]), "+f"(s[0][15][0]), "+f"(s[0][15][1]),
        "+f"(s[1][15][0]), "+f"(s[1][15][1])
      : "l"(a), "l"(b));
}

// The sums are read from here on, not earlier.
__device__ inline void warpgroup_settle(float (&s)[2][16][2]) {
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    asm volatile("" : "+f"(s[0][n][0]), "+f"(s[0][n][1]), "+f"(s[1][n][0]), "+f"(s[1][n][1])::"memory");
  }
}

}  // namespace fused_contrastive
#endif
