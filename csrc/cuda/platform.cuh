// What kernels are written against: CUDA, or with FUSED_CONTRASTIVE_HOST the shim of
// tests/cuda_host. The shim runs the same sources on the CPU, block by block.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef FUSED_CONTRASTIVE_HOST
#include "shim.h"
#else
#include <cuda_runtime.h>

#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

namespace fused_contrastive {

#ifdef FUSED_CONTRASTIVE_HOST
using Stream = void*;
#else
using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#endif

// The most blocks of a launch: this is CUDA's limit, and block indices fit into an int.
constexpr int64_t MOST_BLOCKS = (int64_t(1) << 31) - 1;

// Returns `blocks`, which must be few enough for one launch.
inline int64_t checked_blocks(int64_t blocks) {
  if (blocks <= MOST_BLOCKS) return blocks;
  throw std::runtime_error("the CUDA kernels take at most 2^31 - 1 blocks of work at once, got " +
                           std::to_string(blocks) + ": pass fewer groups or rows at a time");
}

// How many multiprocessors the current device has.
inline int64_t multiprocessors() {
#ifdef FUSED_CONTRASTIVE_HOST
  return shim::MULTIPROCESSORS;
#else
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  return count;
#endif
}

// Starts `blocks` blocks of `threads` threads with `shared` bytes of shared memory. It is
// asynchronous and allocates nothing.
template <class Params>
void launch(void (*kernel)(Params), int64_t blocks, int threads, int shared, Stream stream,
            const Params& params) {
  if (checked_blocks(blocks) <= 0) return;
#ifdef FUSED_CONTRASTIVE_HOST
  shim::run(kernel, blocks, threads, shared, params);
#else
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared > 48 * 1024) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "shared memory");
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  check(cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments,
                         shared, stream),
        "launch");
#endif
}

// Element types of the matrices, as the host names them.
enum class Type { f16, bf16, f32, f64 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct Accumulation {
  using type = float;
};
template <>
struct Accumulation<double> {
  using type = double;
};

constexpr double LOG2E = 1.4426950408889634;
constexpr double LN2 = 0.6931471805599453;

template <class T>
__host__ __device__ inline T ceil_div(T x, T y) {
  return (x + y - 1) / y;
}
template <class T>
__host__ __device__ constexpr T max_of(T x, T y) {
  return x > y ? x : y;
}

}  // namespace fused_contrastive
