// What the bindings of all families share: threads and memory of torch, and views of tensors as the
// kernels' plain structures.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <vector>

#include "library.h"

namespace fused_contrastive {

using at::Tensor;

// Asks for large pages for memory that is about to be written once, where the system grants them.
// Page faults would cost more than the copy.
inline Tensor with_large_pages(Tensor x) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x.mutable_data_ptr()),
                  end = begin + x.nbytes();
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return x;
}

// Hands out memory of tensors: a bump allocator over chunks of torch's own. So torch's profiler and
// its NaN fill see the workspaces.
struct TorchRuntime : Runtime {
  std::vector<Tensor> chunks;
  size_t used = 0, size = 0;

  TorchRuntime() : Runtime{at::get_num_threads(), &allocate_bytes, &run_parallel} {}

  static void* allocate_bytes(Runtime* self, size_t bytes) {
    auto& r = *static_cast<TorchRuntime*>(self);
    bytes = (bytes + 63) / 64 * 64;
    if (r.used + bytes > r.size) {
      r.size = std::max<size_t>(bytes, size_t(1) << 19);
      r.chunks.push_back(with_large_pages(at::empty({int64_t(r.size)}, at::kByte)));
      r.used = 0;
    }
    void* p = r.chunks.back().mutable_data_ptr<uint8_t>() + r.used;
    r.used += bytes;
    return p;
  }
  static void run_parallel(Runtime*, int n, void (*body)(void*, int), void* context) {
    at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(context, int(i));
    });
  }
};

inline Type type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return Type::Float;
    case at::kDouble:
      return Type::Double;
    case at::kBFloat16:
      return Type::BFloat16;
    case at::kHalf:
      return Type::Half;
    default:
      TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", dtype);
  }
}

inline at::ScalarType accumulation(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

inline Tensor rows_contiguous(const Tensor& x) {
  return x.size(2) == 1 || x.stride(2) == 1 ? x : x.contiguous();
}

inline void* data(const Tensor& x) {
  return x.defined() && x.numel() ? x.mutable_data_ptr() : nullptr;
}

}  // namespace fused_contrastive
