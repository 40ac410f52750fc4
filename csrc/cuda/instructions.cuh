// The machine instructions that the kernels use, one wrapper each. With FUSED_CONTRASTIVE_HOST the
// host shim defines the same names.
#pragma once

#include "platform.cuh"

#ifdef FUSED_CONTRASTIVE_HOST
#include "instructions_host.h"
#else

namespace fused_contrastive {

__device__ inline float to_float(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ inline float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ inline float to_float(float x) { return x; }
__device__ inline double to_float(double x) { return x; }

// These conversions round to nearest even.
__device__ inline void from_float(float x, bf16& y) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
__device__ inline void from_float(float x, f16& y) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
__device__ inline void from_float(float x, float& y) { y = x; }
__device__ inline void from_float(float x, double& y) { y = x; }
__device__ inline void from_float(double x, double& y) { y = x; }
__device__ inline void from_float(double x, float& y) { y = static_cast<float>(x); }
__device__ inline void from_float(double x, bf16& y) { from_float(static_cast<float>(x), y); }
__device__ inline void from_float(double x, f16& y) { from_float(static_cast<float>(x), y); }

// Packs two elements into one register, the first in the low half.
__device__ inline uint32_t pack(float low, float high, bf16) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ inline uint32_t pack(float low, float high, f16) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

// One MUFU instruction, accurate to 2 ulp. Denormal results become 0.
__device__ inline float exp_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline double exp_2(double x) { return exp2(x); }

// 1 / sqrt(x) by one MUFU instruction and a Newton step, to about 1 ulp. The result is 0 for
// infinity.
__device__ inline float inverse_root(float x) {
  const float y = rsqrtf(x);
  return y == 0.0f ? y : y * fmaf(-0.5f * x * y, y, 1.5f);
}
__device__ inline double inverse_root(double x) { return rsqrt(x); }

// 1 / x to about 1e-7, and exact for 1.
__device__ inline float rough_inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// float32 rounded to tf32 (10 bits of mantissa): to nearest, ties away from zero.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
__device__ inline float as_float(uint32_t x) { return __uint_as_float(x); }

template <class T>
__device__ inline T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class T>
__device__ inline T shuffle(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}

// *target = max(*target, x) for *target >= 0 and x >= 0 or NaN, which counts as largest.
__device__ inline void atomic_raise(float* target, float x) {
  atomicMax(reinterpret_cast<int*>(target), __float_as_int(fabsf(x)));
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes from global to shared memory, asynchronously. Only the first `valid` bytes are
// read; the rest becomes zeros.
__device__ inline void copy_async(void* shared, const void* global, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid)
               : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's committed groups are under way.
template <int PENDING>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Loads four matrices of 8 rows of 16 bytes. Lane l gives the address of row l % 8 of matrix l / 8,
// and receives word l % 4 of row l / 4 of each.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same for 16-bit elements, with each matrix transposed.
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a b for one warp, m16n8k16 with 4096 flops. A lane holds c0 and c1 in row lane / 4, c2 and
// c3 in row lane / 4 + 8, in columns 2 (lane % 4) + {0, 1}.
__device__ inline void mma(float (&c0)[2], float (&c1)[2], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1, bf16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c0[0]), "+f"(c0[1]), "+f"(c1[0]), "+f"(c1[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma(float (&c0)[2], float (&c1)[2], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1, f16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c0[0]), "+f"(c0[1]), "+f"(c1[0]), "+f"(c1[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same as m16n8k8 on tf32 operands.
__device__ inline void mma_tf32(float (&c0)[2], float (&c1)[2], const uint32_t (&a)[4], uint32_t b0,
                                uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c0[0]), "+f"(c0[1]), "+f"(c1[0]), "+f"(c1[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same as m8n8k4 on doubles: a is at row lane / 4, column lane % 4; b at row lane % 4, column
// lane / 4.
__device__ inline void mma_f64(double (&c)[2], double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
      : "+d"(c[0]), "+d"(c[1])
      : "d"(a), "d"(b));
}

}  // namespace fused_contrastive
#endif
