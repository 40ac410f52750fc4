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

// Natural log of sum exp from base-2 parts; -inf for an empty sum.
template <class Acc>
__device__ inline Acc log_sum(Acc maximum, Acc sum) {
  return sum == Acc(0) ? -infinity(Acc(0)) : (finite(maximum) + log2(sum)) * Acc(LN2);
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
