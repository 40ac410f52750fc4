// The main loop over tiles of the force family, with an epilogue per kernel. It computes squared
// distances of 64 x 64 pairs as sums of squared differences in the accumulation type. Here is also
// what every epilogue does with a distance.
#pragma once

#include "force.h"
#include "row_kernels.cuh"

namespace fused_contrastive {

// 16 bytes of one row.
template <class Acc>
struct alignas(16) Unit {
  static constexpr int SIZE = 16 / static_cast<int>(sizeof(Acc));
  Acc v[SIZE];
};
template <class Acc>
__device__ inline Unit<Acc> load_unit(const Acc* x) {
  return *reinterpret_cast<const Unit<Acc>*>(x);
}

// Four neighbouring elements of a row [0, D) from `d` on, with zeros behind its end.
template <class T>
struct alignas(sizeof(T) < 4 ? 8 : 16) Four {
  T v[4];
};
template <class T>
__device__ inline Four<T> load_four(const T* row, int d, int D) {
  Four<T> x{};
  const bool aligned = ((reinterpret_cast<uint64_t>(row) | static_cast<uint64_t>(d) * sizeof(T)) &
                        (alignof(Four<T>) - 1)) == 0;
  if (aligned && d + 4 <= D) return *reinterpret_cast<const Four<T>*>(row + d);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (d + e < D) x.v[e] = row[d + e];
  }
  return x;
}

// Thread (tx, ty) = (n % 16, n / 16) of 256 holds rows ty + 16 r and columns tx + 16 c of a tile,
// for r, c < 4.
//
// A step is 16 features of both sides. They are loaded into registers while the step before is
// computed, across tile borders, then stored as the accumulation type. There are two stages and one
// barrier per step. Rows lie 16 features + 16 bytes apart, so that 16-byte loads of eight
// neighbouring rows touch every bank once. Sums of 16 features are added up. Per four features a
// thread loads 8 x 16 bytes for 128 arithmetic instructions (subtract, multiply-add).
template <class T>
struct Distances {
  using Acc = typename Accumulation<T>::type;
  static constexpr int TILE = 64, THREADS = 32 * WARPS, STEP = 16;
  static constexpr int STRIDE = STEP + Unit<Acc>::SIZE, STAGE = 2 * TILE * STRIDE;
  static constexpr int SHARED = 2 * STAGE * static_cast<int>(sizeof(Acc));  // bytes

  // Calls epilogue(squares, tile) for every tile of `tiles`, in order, where x [count, D] is one
  // group. It ends with a barrier.
  template <class Tiles, class Epilogue>
  static __device__ void run(const T* x, int count, int D, Tiles tiles, Epilogue& epilogue,
                             Acc* shared) {
    const int row = static_cast<int>(threadIdx.x) / 4,
              feature = static_cast<int>(threadIdx.x) % 4 * 4;
    Tiles ahead = tiles;
    int d_ahead = 0;
    Four<T> staged[2];
    auto load = [&] {
      if (!ahead.valid()) return;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int64_t point = min((side == 0 ? ahead.i : ahead.j) + row, count - 1);
        staged[side] = load_four(x + point * D, d_ahead + feature, D);
      }
      d_ahead += STEP;
      if (d_ahead >= D) {
        d_ahead = 0;
        ahead.next();
      }
    };
    auto store = [&](Acc* stage) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        Acc* target = stage + (side * TILE + row) * STRIDE + feature;
#pragma unroll
        for (int e = 0; e < 4; ++e) target[e] = static_cast<Acc>(to_float(staged[side].v[e]));
      }
    };
    load();
    store(shared);
    int stage = 0;
    for (; tiles.valid(); tiles.next()) {
      Acc total[4][4] = {};
      for (int d = 0; d < D; d += STEP) {
        __syncthreads();  // The stage has landed, and the other one is free.
        const bool more = ahead.valid();
        load();
        add_step(total, shared + stage * STAGE);
        stage ^= 1;
        if (more) store(shared + stage * STAGE);
      }
      epilogue(total, tiles);
    }
    __syncthreads();
  }

  static __device__ void add_step(Acc (&total)[4][4], const Acc* stage) {
    constexpr int SIZE = Unit<Acc>::SIZE;
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
    Acc part[4][4] = {};
#pragma unroll
    for (int k = 0; k < STEP; k += SIZE) {
      Unit<Acc> columns[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) columns[c] = load_unit(stage + (TILE + tx + 16 * c) * STRIDE + k);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const Unit<Acc> own = load_unit(stage + (ty + 16 * r) * STRIDE + k);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
#pragma unroll
          for (int e = 0; e < SIZE; ++e) {
            const Acc difference = own.v[e] - columns[c].v[e];
            part[r][c] = fma(difference, difference, part[r][c]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) total[r][c] += part[r][c];
    }
  }
};

// The larger of two numbers; a NaN stays NaN.
template <class Acc>
__device__ inline Acc at_least(Acc x, Acc least) {
  return x < least ? least : x;
}
template <class Acc>
__device__ inline Acc distance(Acc square, const ForceParams& p) {
  return sqrt(at_least(square, static_cast<Acc>(p.clip)));
}

// The natural exponential. For float it is one exp2, with what rounding its argument lost as a
// factor, and 0 below -200.
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float exponential(float x) {
  constexpr float HIGH = static_cast<float>(LOG2E),
                  LOW = static_cast<float>(LOG2E - static_cast<double>(HIGH));
  x = at_least(x, -200.0f);
  const float y = x * HIGH, e = exp_2(y);
  return fma(e, static_cast<float>(LN2) * fma(x, LOW, fma(x, HIGH, -y)), e);
}

// The shift of a sum of exponentials; the -inf of an empty sum counts as 0.
template <class Acc>
__device__ inline Acc shift_of(Acc maximum) {
  return maximum == -infinity(maximum) ? Acc(0) : maximum;
}

// Merges (maximum, sum of exp(x - maximum)) of two disjoint parts.
template <class Acc>
__device__ inline void merge_sums(Acc& maximum, Acc& sum, Acc other_maximum, Acc other_sum) {
  const Acc shift = shift_of(fmax(maximum, other_maximum));
  sum = sum * exponential(maximum - shift) + other_sum * exponential(other_maximum - shift);
  maximum = fmax(maximum, other_maximum);
}
// Merges over the lanes that differ in the bits below `lanes`.
template <class Acc>
__device__ inline void merge_lanes(Acc& maximum, Acc& sum, int lanes) {
  for (int bit = 1; bit < lanes; bit *= 2) {
    const Acc other_maximum = shuffle_xor(maximum, bit), other = shuffle_xor(sum, bit);
    merge_sums(maximum, sum, other_maximum, other);
  }
}
template <class Acc>
__device__ inline Acc warp_max(Acc x) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) x = fmax(x, shuffle_xor(x, bit));
  return x;
}

// The logarithm of a sum of exponentials, -inf for an empty one, and what its rounding lost
// (Knuth's two-sum).
template <class Acc>
struct LogOfSum {
  Acc value, lost;

  __device__ LogOfSum(Acc maximum, Acc sum) {
    const Acc x = shift_of(maximum), y = log(sum), total = x + y, added = total - x;
    value = total;
    lost = fabs(total) < infinity(total) ? (x - (total - added)) + (y - added) : Acc(0);
  }
  __device__ void store(void* lse, int64_t plane, int64_t place) const {
    static_cast<Acc*>(lse)[place] = value;
    static_cast<Acc*>(lse)[plane + place] = lost;
  }
};

// Temperature k of group g as the factor of its distances. A scale of 0, where all points are
// equal, counts as 1.
template <class Acc>
__device__ inline Acc unit_scale(const void* scale, int g) {
  const Acc given = static_cast<const Acc*>(scale)[g];
  return given == Acc(0) ? Acc(1) : given;
}
template <class Acc>
__device__ inline Acc factor(const ForceParams& p, int k, Acc scale) {
  return static_cast<const Acc*>(p.inverse)[k] / scale;
}

// a_ij of a pair of different points, with R_i and C_j in two parts.
template <class Acc>
__device__ inline Acc log_affinity(Acc d, Acc f, Acc row, Acc row_lost, Acc column, Acc column_lost,
                                   const ForceParams& p) {
  const Acc least = static_cast<Acc>(p.denominator);
  Acc a;
  if (least > -infinity(least)) {
    a = fma(-f, d, Acc(-0.5) * at_least(row + column, least));
  } else {
    a = fma(Acc(-0.5), column, fma(-f, d, Acc(-0.5) * row));
    a = fma(Acc(-0.5), row_lost + column_lost, a);
  }
  return at_least(a, static_cast<Acc>(p.floor));
}

// The sum of (d exp(a))^2 relative to exp(2 maximum), where the maximum of a is taken over pairs
// with d > 0.
template <class Acc>
__device__ inline Acc moment(Acc d, Acc a, Acc maximum) {
  const Acc root = d == Acc(0) ? Acc(0) : d * exponential(a - shift_of(maximum));
  return root * root;
}
__device__ inline double log_moments(double maximum, double sum) {
  return sum == 0 ? -infinity(sum) : 2 * shift_of(maximum) + log(sum);
}

// A row's weights of one side are +-coefficient * exp(a - level). The level is log_norm less the
// other side's shift. The coefficient holds that side's sum, with what rounding the level lost. So
// the exponent is a term's own. It does not matter how far the affinities of equal points, which
// are no terms, exceed all others. Weights are 0 where log_norm or the shift is -inf.
template <class Acc>
struct ForceLevel {
  Acc level, coefficient;

  __device__ ForceLevel(Acc shift, Acc sum, double log_norm) {
    const double exact = log_norm - static_cast<double>(shift);
    const bool none = log_norm == -infinity(log_norm) || shift == -infinity(shift);
    level = none ? Acc(0) : static_cast<Acc>(exact);
    coefficient =
        sum * (none ? Acc(0) : exponential(static_cast<Acc>(static_cast<double>(level) - exact)));
  }
};

// log_norm from the parts [2][WARPS] of the warps: with rms (maximum, sum) of the logarithms of (d
// A)^2, else the maxima of the terms' exponents.
__device__ inline double log_norm_of(const double* parts, double scale, const ForceParams& p) {
  double maximum = parts[0], sum = parts[WARPS];
  for (int w = 1; w < WARPS; ++w) {
    if (p.rms) {
      merge_sums(maximum, sum, parts[w], parts[WARPS + w]);
    } else {
      maximum = larger(maximum, parts[w]);
    }
  }
  if (!p.rms) return shift_of(maximum);
  return (shift_of(maximum) + log(sum)) / 2 - log(static_cast<double>(p.P)) - log(scale);
}
// Adds exp(x) to a sum.
__device__ inline void merge_log(double& maximum, double& sum, double x) {
  merge_sums(maximum, sum, x, x == -infinity(x) ? 0.0 : x - x + 1.0);  // NaN for a NaN
}

}  // namespace fused_contrastive
