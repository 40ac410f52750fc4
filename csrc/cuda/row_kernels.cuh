// What the row-wise kernels share: a warp per row, scalar functions, elements of any type.
#pragma once

#include "logits.cuh"
#include "similarity.h"

namespace fused_contrastive {

constexpr int WARPS = 8;  // warps of a block of a row-wise kernel

__device__ inline float smallest_norm(float) { return 1e-12f; }
__device__ inline double smallest_norm(double) { return 1e-12; }

// The larger of two numbers, or the first NaN.
template <class Acc>
__device__ inline Acc larger(Acc x, Acc y) {
  return x != x || x > y ? x : y;
}

template <class Acc>
__device__ inline Acc warp_sum(Acc x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x += shuffle_xor(x, bit);
  return x;
}

// log(1 + x) for 0 <= x <= 1, accurate relative to itself. What rounding 1 + x lost comes back to
// first order.
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

// What rounding the constants to float64 lost.
constexpr double LOG2E_LOW = 2.0355273740931033e-17, LN2_LOW = 2.3190468138462996e-17;

// A log-sum-exp as the sum of two float64 numbers. At large logits the rounding of a single number
// would be most of the error of exp(s - lse).
struct LogSum {
  double value, lost;

  __device__ double excess(double pos) const { return value - pos + lost; }
  // NaN where cross entropy is NaN (an infinite positive, or an infinite candidate), else 0.
  __device__ double undefined(double pos) const { return 0 * (pos + fmax(value, 0.0)); }
};

// The natural logarithm of a sum of exponentials from base-2 parts, -inf for an empty sum. Sums and
// products carry what their rounding lost.
__device__ inline LogSum log_sum(double maximum, double sum) {
  const double shift = finite(maximum), x = shift * LN2, y = log(sum), lse = x + y, added = lse - x;
  if (sum == 0 || !(fabs(lse) < infinity(lse))) return {sum == 0 ? -infinity(lse) : lse, 0};
  const double rest = (x - (lse - added)) + (y - added) + fma(shift, LN2, -x) + shift * LN2_LOW,
               value = lse + rest;
  return {value, rest - (value - lse)};
}

// log(exp(x) + exp(y)).
__device__ inline LogSum logaddexp(const LogSum& x, double y) {
  const double excess = x.excess(y), top = excess > 0 ? x.value : y;
  const double rest = log_one_plus(exp(-fabs(excess))) + (excess > 0 ? x.lost : 0),
               value = top + rest;
  return {value, rest - (value - top)};
}

// Stores x rounded to Acc and, `plane` elements on, what that lost (0 where it is not finite).
template <class Acc>
__device__ inline void store_lse(void* lse, int64_t plane, int64_t index, const LogSum& x) {
  const Acc rounded = static_cast<Acc>(x.value);
  Acc* target = static_cast<Acc*>(lse) + index;
  target[0] = rounded;
  target[plane] =
      fabs(rounded) < infinity(rounded) ? static_cast<Acc>(x.value - rounded + x.lost) : Acc(0);
}
template <class Acc>
__device__ inline LogSum load_lse(const void* lse, int64_t plane, int64_t index) {
  const Acc* source = static_cast<const Acc*>(lse) + index;
  return {static_cast<double>(source[0]), static_cast<double>(source[plane])};
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
