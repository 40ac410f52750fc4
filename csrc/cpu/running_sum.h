// Sums of exponentials that keep their range, the logarithm of such a sum in two parts, and the
// scalar functions of log-sum-exps and logits that the passes share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace fused_contrastive::FUSED_ISA {

// High and low parts of log2(e) and log(2).
constexpr double LOG2_E = 1.4426950408889634, LOG2_E_LOW = 2.0355273740931033e-17;
constexpr double LN_2 = 0.6931471805599453, LN_2_LOW = 2.3190468138462996e-17;

// 2^n for an n that is integral, or not finite.
inline double power_of_two(double n) {
  if (!(n < 1024)) return n == n ? std::numeric_limits<double>::infinity() : n;
  if (n < -1022) return 0;
  const uint64_t bits = uint64_t(int64_t(n) + 1023) << 52;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}

// sum * 2^reference, with an integral reference. It is -inf while nothing has been added.
struct RunningSum {
  double sum, reference;

  // Adds x * 2^shift.
  void add(double x, double shift) {
    if (x == 0) return;
    if (shift > reference) {
      sum = sum * power_of_two(reference - shift) + x;
      reference = shift;
    } else {
      sum += shift == reference ? x : x * power_of_two(shift - reference);
    }
  }
  // The natural logarithm, and what its rounding lost.
  std::pair<double, double> log() const {
    const double x = sum == 0 ? 0 : reference * LN_2, y = std::log(sum), lse = x + y;
    if (!std::isfinite(lse)) return {lse, 0};
    const double product = x == 0 ? 0 : std::fma(reference, LN_2, -x) + reference * LN_2_LOW,
                 added = lse - x;
    const double rest = (x - (lse - added)) + (y - added) + product, high = lse + rest;
    return {high, rest - (high - lse)};
  }
};

// NaN where the loss of eager cross entropy is NaN (an infinite positive, or an infinite
// candidate), else 0.
inline double undefined(double lse, double pos) { return 0 * (pos + (lse > 0 ? lse : 0)); }

// log(1 + exp(x)).
inline double softplus(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))); }

// 1 / (1 + exp(-x)).
inline double logistic(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

}  // namespace fused_contrastive::FUSED_ISA
