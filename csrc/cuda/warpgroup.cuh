// The warpgroup instructions of sm_90a, one wrapper each. With FUSED_CONTRASTIVE_HOST the host shim
// defines the same names.
#pragma once

#include "instructions.cuh"

#ifdef FUSED_CONTRASTIVE_HOST
#include "warpgroup_host.h"
#else

namespace fused_contrastive {

__device__ inline void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING>
__device__ inline void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// How many registers each thread of this warpgroup has from here on: fewer, or more once other
// warpgroups have given theirs up.
template <int COUNT>
__device__ inline void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// The descriptor of a matrix in shared memory with rows of 128 bytes and the 128-byte swizzle.
// Groups of eight rows lie 1024 bytes apart.
__device__ inline uint64_t descriptor(const unsigned char* rows) {
  const uint64_t address = (shared_address(rows) & 0x3ffff) >> 4;
  return address | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

#define FUSED_SUMS(n) "+f"(s[0][n][0]), "+f"(s[0][n][1]), "+f"(s[1][n][0]), "+f"(s[1][n][1])
#define FUSED_8_SUMS(n)                                                                      \
  FUSED_SUMS(n), FUSED_SUMS(n + 1), FUSED_SUMS(n + 2), FUSED_SUMS(n + 3), FUSED_SUMS(n + 4), \
      FUSED_SUMS(n + 5), FUSED_SUMS(n + 6), FUSED_SUMS(n + 7)
#define FUSED_WARPGROUP_MMA(type)                                                              \
  asm volatile(                                                                                \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                             \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "               \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "       \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "       \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "       \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "       \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "       \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, " \
      "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "   \
      "%125, %126, %127}, %128, %129, 1, 1, 1, 0, 0;"                                          \
      : FUSED_8_SUMS(0), FUSED_8_SUMS(8), FUSED_8_SUMS(16), FUSED_8_SUMS(24)                   \
      : "l"(a), "l"(b))

// s += a b^T for 64 rows of a and 256 rows of b, 32 bytes of each: 524288 flops.
__device__ inline void warpgroup_mma(float (&s)[2][32][2], uint64_t a, uint64_t b, bf16) {
  FUSED_WARPGROUP_MMA("bf16");
}
__device__ inline void warpgroup_mma(float (&s)[2][32][2], uint64_t a, uint64_t b, f16) {
  FUSED_WARPGROUP_MMA("f16");
}

// The sums may be read from here on, not earlier.
__device__ inline void warpgroup_settle(float (&s)[2][32][2]) {
  asm volatile("" : FUSED_8_SUMS(0)::"memory");
  asm volatile("" : FUSED_8_SUMS(8)::"memory");
  asm volatile("" : FUSED_8_SUMS(16)::"memory");
  asm volatile("" : FUSED_8_SUMS(24)::"memory");
}

#undef FUSED_WARPGROUP_MMA
#undef FUSED_8_SUMS
#undef FUSED_SUMS

}  // namespace fused_contrastive
#endif
