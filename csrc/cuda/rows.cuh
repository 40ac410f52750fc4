// Shared by the row-wise kernels: a warp per row, scalar functions, elements of any type.
#pragma once

#include "launch.h"
#include "logits.cuh"

namespace fused_contrastive {

constexpr int WARPS = 8;  // of a block of a row-wise kernel

__device__ inline float smallest_norm(float) { return 1e-12f; }
__device__ inline double smallest_norm(double) { return 1e-12; }

template <class Acc>
__device__ inline Acc warp_sum(Acc x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x += shuffle_xor(x, bit);
  return x;
}

// log(1 + x) for 0 <= x <= 1, accurate relative to itself: what rounding 1 + x lost comes back to first order.
template <class Acc>
__device__ inline Acc log_one_plus(Acc x) {
  const Acc u = Acc(1) + x;
  return log(u) + (x - (u - Acc(1))) * static_cast<Acc>(rough_inverse(static_cast<float>(u)));
}

// log(1 + exp(x)), accurate relative to itself.
template <class Acc>
__device__ inline Acc softplus(Acc x) {
  return fmax(x, Acc(0)) + log_one_plus(exp(-fabs(x)));
}
// 1 / (1 + exp(-x)), accurate relative to itself on both sides.
template <class Acc>
__device__ inline Acc sigmoid(Acc x) {
  const Acc small = exp(-fabs(x));
  return (x >= Acc(0) ? Acc(1) : small) / (Acc(1) + small);
}
template <class Acc>
__device__ inline Acc logaddexp(Acc x, Acc y) {
  const Acc top = fmax(x, y);
  return fabs(top) == infinity(top) ? top + (x - x) * 0 + (y - y) * 0 : top + log_one_plus(exp(-fabs(x - y)));
}

// NaN where cross entropy is (an infinite positive, or an infinite candidate), else 0.
__device__ inline double undefined(double lse, double pos) { return 0 * (pos + fmax(lse, 0.0)); }

// Natural log of sum exp from base-2 parts; -inf for an empty sum. In float64: at large logits the rounding of a float32
// would be most of the error of exp(s - lse).
__device__ inline double log_sum(double maximum, double sum) {
  return sum == 0 ? -infinity(0.0) : (finite(maximum) + log2(sum)) * LN2;
}

// x rounded and, `plane` elements on, what that lost (0 where it is not finite).
template <class Acc>
__device__ inline void store_lse(void* lse, int64_t plane, int64_t index, double x) {
  const Acc rounded = static_cast<Acc>(x);
  Acc* target = static_cast<Acc*>(lse) + index;
  target[0] = rounded;
  target[plane] = fabs(rounded) < infinity(rounded) ? static_cast<Acc>(x - rounded) : Acc(0);
}
template <class Acc>
__device__ inline double load_lse(const void* lse, int64_t plane, int64_t index) {
  const Acc* source = static_cast<const Acc*>(lse) + index;
  return static_cast<double>(source[0]) + source[plane];
}

// Calls f with a value of the element type `type`.
template <class F>
__device__ inline void with_type(Type type, F f) {
  switch (type) {
    case Type::f16:
      return f(f16{});
    case Type::bf16:
      return f(bf16{});
    case Type::f32:
      return f(float{});
    case Type::f64:
      return f(double{});
  }
}

// Host: calls f with a value of the matrix type.
template <class F>
inline void with_matrix(Type type, F f) {
  switch (type) {
    case Type::f16:
      return f(f16{});
    case Type::bf16:
      return f(bf16{});
    case Type::f32:
      return f(float{});
    case Type::f64:
      return f(double{});
  }
}

}  // namespace fused_contrastive
