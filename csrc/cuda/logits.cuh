// The logits of a tile: scale, bias and candidates (fused_contrastive/problem.py) applied to the
// products. They are in base 2, s2 = s log2(e), so that an exponential is one exp2.
#pragma once

#include "problem.h"
#include "tile_loop.cuh"

namespace fused_contrastive {

__device__ inline float infinity(float) { return __int_as_float(0x7f800000); }
__device__ inline double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }

// x, or 0 for an infinite x: the shift of a sum of exponentials.
template <class Acc>
__device__ inline Acc finite(Acc x) {
  return fabs(x) == infinity(x) ? Acc(0) : x;
}

// Merges (maximum, sum of exp2(x - maximum)) of two disjoint parts.
template <class Acc>
__device__ inline void fold(Acc& maximum, Acc& sum, Acc other_maximum, Acc other_sum) {
  const Acc top = other_maximum > maximum ? other_maximum : maximum;
  const Acc shift = finite(top);
  sum = sum * exp_2(maximum - shift) + other_sum * exp_2(other_maximum - shift);
  maximum = top;
}

// Tells which differences column - row are multiples of a stride, for `first` and up to 2^16 behind
// it. After the first one it needs no division (Lemire, Kaser, Kurz 2019, "Faster remainder by
// direct computation", 3.2).
struct Multiples {
  // The first multiple at or behind `first`, negated.
  int offset;
  uint32_t inverse;

  __device__ Multiples(int first, int stride) : inverse(0xffffffffu / stride + 1) {
    const int rest = -first % stride;
    offset = -(rest < 0 ? rest + stride : rest);
  }
  __device__ bool operator[](int behind) const {
    const int n = offset + behind;
    return n >= 0 && static_cast<uint32_t>(n) * inverse <= inverse - 1;
  }
};

// Whether rows [i, i + BM) by columns [j, j + BN) contain a pair that lies outside the matrix or is
// no candidate. For keys: whether they may contain one.
template <int BM, int BN>
__device__ inline bool needs_mask(const Problem& p, int i, int j) {
  if (i + BM > p.M || j + BN > p.N || p.kind >= OTHER_KEY) return true;
  const int low = j - (i + BM - 1) - p.offset, high = j + BN - 1 - i - p.offset;
  if (p.kind == NOT_SELF) return low <= 0 && high >= 0;
  if (p.kind == NOT_PAIR) {
    // `high` less `above` is the last multiple of the stride up to `high`.
    const int above = high % p.stride;
    return high - (above < 0 ? above + p.stride : above) >= low;
  }
  return false;
}

// scale2 s + shift, where what the products lost on average is put back.
template <class P, class Acc = typename P::Acc>
__device__ inline Acc scaled(Acc s, Acc scale2, Acc shift) {
  return fma(s, scale2, P::LOST == 0 ? shift : fma(s, scale2 * Acc(P::LOST), shift));
}

// Turns products into s2 of group g, for the warp's tile whose rows begin at i and columns at j of
// the whole matrix. It is -inf where a pair is no candidate, and with `upper` also where column <
// row. KEYED kinds compare keys. SCALED means that s already is s2.
template <class P, bool KEYED, bool SCALED = false, class Acc = typename P::Acc>
__device__ inline void logits(Acc (&s)[P::MB][P::NB][2], const Problem& p, int64_t g, Acc scale2,
                              int i, int j, bool mask, bool upper) {
  constexpr int MB = P::MB, NB = P::NB;
  i += lane_id() >> 2;
  j += 2 * (lane_id() & 3);
  const Acc* bias = p.bias == nullptr ? nullptr : static_cast<const Acc*>(p.bias) + g * p.N + j;
#pragma unroll
  for (int n = 0; n < (SCALED ? 0 : NB); ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool biased = bias != nullptr && j + 8 * n + e < p.N;
      const Acc shift = biased ? bias[8 * n + e] * Acc(LOG2E) : Acc(0);
#pragma unroll
      for (int m = 0; m < MB; ++m) s[m][n][e] = scaled<P>(s[m][n][e], scale2, shift);
    }
  }
  if (!mask) return;
  int64_t keys[MB];
  const int first = j - i - p.offset - 8 * (MB - 1);
  const Multiples pairs(first, KEYED || p.kind != NOT_PAIR ? 1 : p.stride);
  const int64_t* column_keys = p.key_b + g * p.N + j;
  if (KEYED) {
#pragma unroll
    for (int m = 0; m < MB; ++m) keys[m] = p.key_a[g * p.M + min(i + 8 * m, p.M - 1)];
  }
#pragma unroll
  for (int n = 0; n < NB; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = j + 8 * n + e;
      const int64_t key = KEYED && column < p.N ? column_keys[8 * n + e] : 0;
#pragma unroll
      for (int m = 0; m < MB; ++m) {
        const int row = i + 8 * m;
        const int behind = 8 * (MB - 1 + n - m) + e;
        bool keep = row < p.M && column < p.N && !(upper && column < row);
        if (KEYED) {
          keep = keep && (key == keys[m]) == (p.kind == SAME_KEY) &&
                 (p.kind == OTHER_KEY || first + behind != 0);
        } else {
          keep =
              keep && (p.kind == NOT_PAIR ? !pairs[behind] : p.kind == ALL || first + behind != 0);
        }
        if (!keep) s[m][n][e] = -infinity(Acc(0));
      }
    }
  }
}

}  // namespace fused_contrastive
