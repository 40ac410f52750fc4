// What the operators over pairs share: element types, the choice of kernels, and the problem as
// plain pointers and sizes.
#pragma once

#include "operators.h"
#include "problem.h"
#include "similarity.h"

namespace fused_contrastive {

// Whether one element in memory stands for all elements of the tensor.
inline bool expanded(const Tensor& x) {
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) > 1 && x.stride(d) != 0) return false;
  }
  return true;
}

inline Type type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return Type::f16;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::Double:
      return Type::f64;
    default:
      STD_TORCH_CHECK(false,
                      "the CUDA kernels take float16, bfloat16, float32 and float64 tensors");
  }
}

// Whether the tensor's device has compute capability 9.0. Only there do warpgroup products and
// tensor copies exist.
inline bool is_sm90([[maybe_unused]] const Tensor& x) {
  int major = 0;
#ifdef FUSED_CONTRASTIVE_HOST
  major = shim::capability_major();
#else
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, x.get_device_index()),
        "compute capability");
#endif
  return major == 9;
}

// Whether tensor copies can read both matrices. Then the kernels of sm_90 serve them.
inline bool by_tensor_copies(const Tensor& x, const Tensor& y) {
  const auto bits =
      reinterpret_cast<uintptr_t>(x.data_ptr()) | reinterpret_cast<uintptr_t>(y.data_ptr());
  const bool copies =
      (bits | static_cast<uintptr_t>(2 * x.size(2))) % 16 == 0 && x.numel() > 0 && y.numel() > 0;
  return copies && (type(x) == Type::bf16 || type(x) == Type::f16) && is_sm90(x);
}

inline Problem problem(const Tensor& x, const Tensor& y, const OptionalTensor& bias,
                       const OptionalTensor& key_a, const OptionalTensor& key_b,
                       const Tensor& scale, int64_t kind, int64_t offset, int64_t stride) {
  Problem p{};
  p.x = pointer(x), p.y = pointer(y), p.bias = pointer(bias), p.scale = pointer(scale);
  p.key_a = static_cast<const int64_t*>(pointer(key_a)),
  p.key_b = static_cast<const int64_t*>(pointer(key_b));
  p.G = size(x, 0), p.M = size(x, 1), p.N = size(y, 1), p.D = size(x, 2);
  p.kind = static_cast<int>(kind), p.offset = static_cast<int>(offset),
  p.stride = static_cast<int>(stride);
  return p;
}

}  // namespace fused_contrastive
