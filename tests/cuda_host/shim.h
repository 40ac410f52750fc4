// Runs CUDA kernels on the CPU, block by block: what csrc/cuda needs of the language. The threads
// of a block are fibers on one thread. They change over at barriers and at instructions of a whole
// warp, in an order that tests can choose.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <stdexcept>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define SHARED_MEMORY(name) unsigned char* name = shim::shared_memory()
#define threadIdx (shim::thread_index())
#define blockIdx (shim::block_index())
#define gridDim (shim::grid_size())

using std::max;
using std::min;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

template <class To, class From>
inline To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation");
  To y;
  memcpy(&y, &x, sizeof(y));
  return y;
}
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline uint32_t __float_as_uint(float x) { return bits_as<uint32_t>(x); }
inline double __longlong_as_double(long long x) { return bits_as<double>(x); }

namespace shim {

struct Index {
  unsigned x;
};
Index thread_index();
Index block_index();
Index grid_size();
unsigned char* shared_memory();
void barrier();

// Called by all 32 lanes, each with its own `arguments`. The last one to arrive runs `all` on those
// of every lane.
void collective(void* arguments, void (*all)(void* const* lanes));

// Asynchronous copies: they are queued, and done when waited for (or at once, as tests choose).
void copy(void* target, const void* source, int valid);
void commit_copies();
void wait_for_copies(int pending);

// Products of a warpgroup, one share per thread: they are done when waited for (or at once, as
// tests choose).
void issue_product(const std::function<void()>& share);
void commit_products();
void wait_for_products(int pending);

// Barriers in shared memory: a phase ends when all have arrived and the bytes that arrivals
// announced have landed.
void barrier_init(uint64_t* barrier, int arrivals);
void barrier_arrive(uint64_t* barrier, int bytes);
void barrier_wait(uint64_t* barrier, uint32_t parity);

// A tensor copy of `bytes` bytes to `target`. It is done at once, or when no thread can run without
// it; then the oldest or the newest comes first.
void tensor_copy(unsigned char* target, int bytes, uint64_t* landed,
                 const std::function<void()>& copy);

void named_barrier(int id, int threads);

constexpr int64_t MULTIPROCESSORS = 3;
int capability_major();  // of the device that tests choose

// Runs `thread` as every thread of every block, one block after the other. Throws on a deadlock, on
// divergence within an instruction of a warp, on writes past the end of shared memory, and on
// misuse of its barriers.
void run_blocks(int64_t blocks, int threads, int shared, const std::function<void()>& thread);

template <class Params>
void run(void (*kernel)(Params), int64_t blocks, int threads, int shared, const Params& params) {
  run_blocks(blocks, threads, shared, [&] { kernel(params); });
}

}  // namespace shim

inline void __syncthreads() { shim::barrier(); }
inline void __syncwarp() {
  shim::collective(nullptr, [](void* const*) {});
}
