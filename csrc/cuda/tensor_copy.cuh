// Tensor copies of sm_90 (TMA), the barriers in shared memory that count them, and barriers of a
// part of a block. With FUSED_CONTRASTIVE_HOST the host shim defines the same names.
#pragma once

#include "instructions.cuh"

#ifdef FUSED_CONTRASTIVE_HOST
#include "tensor_copy_host.h"
#else
#include <cudaTypedefs.h>

namespace fused_contrastive {

using TensorMap = CUtensorMap;
using Barrier = uint64_t;

// Host: makes the tensor map of x [G, count, D] for boxes of `rows` rows and 128 bytes, with the
// 128-byte swizzle. x and its rows are aligned to 16 bytes. The driver's encoder is looked up, as
// nothing here links to the driver.
template <class T>
inline TensorMap tensor_map(const void* x, int G, int count, int D, int rows) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess)
      throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  constexpr auto TYPE =
      std::is_same_v<T, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t row = static_cast<cuuint64_t>(D) * sizeof(T);
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(D), static_cast<cuuint64_t>(count),
                              static_cast<cuuint64_t>(G)};
  const cuuint64_t strides[] = {row, row * count};
  const cuuint32_t box[] = {128 / sizeof(T), static_cast<cuuint32_t>(rows), 1}, every[] = {1, 1, 1};
  TensorMap map;
  const CUresult error =
      encode(&map, TYPE, 3, const_cast<void*>(x), sizes, strides, box, every,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(error));
  return map;
}

// Copies the box from (feature, row, group) on to shared memory that is aligned to 1024 bytes, with
// zeros behind the tensor's end. `landed` counts its bytes. One thread calls it.
__device__ inline void tensor_copy(void* shared, const TensorMap& map, int feature, int row,
                                   int group, Barrier* landed) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4}], [%5];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(feature), "r"(row), "r"(group), "r"(shared_address(landed))
      : "memory");
}

// A phase ends when `arrivals` have arrived and every byte expected has landed.
__device__ inline void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// Belongs behind the initialisations and before the barrier of the block that shows them to all
// threads. It shows them to the copies, too.
__device__ inline void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
__device__ inline void barrier_arrive_and_expect(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Waits until the phase of this parity has ended: 0 for the first one. For the phase before it
// returns at once.
__device__ inline void barrier_wait(Barrier* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, "
        "0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// A __syncthreads of the `threads` threads that call it, which are whole warps. Barrier 0 belongs
// to __syncthreads itself.
__device__ inline void named_barrier(int barrier, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace fused_contrastive
#endif
