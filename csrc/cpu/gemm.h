// Register-blocked products of packed operands. MR rows by NR vectors of accumulators take one
// broadcast and NR fused multiply-adds per row and step. On AVX-512 the 8 x 2 block runs at the
// machine's multiply-add rate (two per cycle) from the second-level cache.
//
// The packed layouts (pack.h) are in units of one element or, for bf16, of a pair along the
// contraction:
//   z_t  [row panels][D units][P]     the rows' side and the columns' side of a tile of logits
//   z_p  [D / P panels][row units][P] the right side of W z and W^T z
#pragma once

#include "vec.h"

namespace fused_contrastive::FUSED_ISA {

constexpr int MR = Vec<float>::W == 16 ? 8 : 4;

template <class T>
constexpr int PANEL = 2 * Vec<T>::W;

// How a matrix type is multiplied. T accumulates, and a Unit holds PAIR consecutive elements of the
// contraction.
template <class T_>
struct Native {
  using T = T_;
  using Unit = T_;
  using Operand = Vec<T_>;
  static constexpr int PAIR = 1;
  static FUSED_INLINE Operand load(const Unit* p) { return Operand::load(p); }
  static FUSED_INLINE Operand broadcast(Unit x) { return Operand(x); }
  static FUSED_INLINE Vec<T> multiply_add(Operand a, Operand b, Vec<T> c) { return fma(a, b, c); }
};

#if defined(FUSED_BF16)
struct PairedBFloat16 {
  using T = float;
  using Unit = uint32_t;
  using Operand = __m512i;
  static constexpr int PAIR = 2;
  static FUSED_INLINE Operand load(const Unit* p) { return _mm512_loadu_si512(p); }
  static FUSED_INLINE Operand broadcast(Unit x) { return _mm512_set1_epi32(int(x)); }
  static FUSED_INLINE Vec<T> multiply_add(Operand a, Operand b, Vec<T> c) {
    return _mm512_dpbf16_ps(c.v, __m512bh(a), __m512bh(b));
  }
};
#endif

// acc[r][c] = sum_k a[r * row_stride + k * step] * b[k * PANEL + c * W]
template <class C, int NR>
FUSED_INLINE void accumulate(Vec<typename C::T> (&acc)[MR][NR], const typename C::Unit* a,
                             int64_t row_stride, int64_t step, const typename C::Unit* b,
                             int64_t k) {
  using T = typename C::T;
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < NR; ++c) acc[r][c] = Vec<T>(T(0));
#pragma GCC unroll 4
  for (int64_t i = 0; i < k; ++i) {
    typename C::Operand x[NR];
#pragma GCC unroll 4
    for (int c = 0; c < NR; ++c) x[c] = C::load(b + c * Vec<T>::W);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const typename C::Operand y = C::broadcast(a[r * row_stride]);
#pragma GCC unroll 4
      for (int c = 0; c < NR; ++c) acc[r][c] = C::multiply_add(y, x[c], acc[r][c]);
    }
    a += step;
    b += PANEL<T>;
  }
}

// The factor of logits in units of log 2: out = factor * (a b) + add. It has two parts, so that it
// carries no rounding of its own. Both parts have one sign and are not 0, so that an infinite
// product stays that infinity. Forward and backward round a logit alike: a row's weights then sum
// to 1, whatever was lost.
template <class T>
struct Factor {
  T high, low;
  explicit Factor(double x) : high(T(x)) {
    if (std::fabs(double(high)) > std::fabs(x)) high = std::nextafter(high, T(0));
    const double rest = x - double(high);
    low = T(rest == 0 ? std::ldexp(x, -80) : rest);
  }
};

template <class C, int NR>
void logits_block(const typename C::Unit* a, int64_t step, const typename C::Unit* b, int64_t k,
                  Factor<typename C::T> factor, const typename C::T* add, typename C::T* out,
                  int64_t ld) {
  using V = Vec<typename C::T>;
  V acc[MR][NR];
  accumulate<C, NR>(acc, a, 1, step, b, k);
  const V high(factor.high), low(factor.low);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < NR; ++c) {
      const V z = acc[r][c], x = V::load(add + c * V::W);
      fma(z, high, fma(z, low, x)).store(out + r * ld + c * V::W);
    }
}

// Prefetches the block of the sum that is needed after the k multiply-adds.
template <int NR, class T>
FUSED_INLINE void prefetch([[maybe_unused]] const T* out, [[maybe_unused]] int64_t ld) {
#if defined(__GNUC__) || defined(__clang__)
  for (int r = 0; r < MR; ++r)
    for (int c = 0; c < NR; ++c) __builtin_prefetch(out + r * ld + c * Vec<T>::W, 1);
#endif
}

template <class C, int NR>
void product_block(const typename C::Unit* a, int64_t row_stride, int64_t step,
                   const typename C::Unit* b, int64_t k, typename C::T* out, int64_t ld, bool add) {
  using V = Vec<typename C::T>;
  V acc[MR][NR];
  if (add) prefetch<NR>(out, ld);
  accumulate<C, NR>(acc, a, row_stride, step, b, k);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < NR; ++c) {
      typename C::T* p = out + r * ld + c * V::W;
      (add ? acc[r][c] + V::load(p) : acc[r][c]).store(p);
    }
}

// out [m, D] (+)= a [m, k] b [k, D], where b is packed as z_p with `panel_stride` units between its
// panels.
template <class C>
void product(const typename C::Unit* a, int64_t row_stride, int64_t step, int64_t m,
             const typename C::Unit* b, int64_t panel_stride, int64_t k, typename C::T* out,
             int64_t D, bool add) {
  using T = typename C::T;
  constexpr int P = PANEL<T>, W = Vec<T>::W;
  for (int64_t d = 0; d < D; d += P, b += panel_stride) {
    const int64_t n = std::min<int64_t>(P, D - d);
    for (int64_t i = 0; i < m; i += MR) {
      const typename C::Unit* x = a + i * row_stride;
      T* p = out + i * D + d;
      if (n == P && m - i >= MR) {
        product_block<C, 2>(x, row_stride, step, b, k, p, D, add);
      } else if (n == W && m - i >= MR) {
        product_block<C, 1>(x, row_stride, step, b, k, p, D, add);
      } else {
        T edge[MR * P];
        product_block<C, 2>(x, row_stride, step, b, k, edge, P, false);
        for (int64_t r = 0; r < std::min<int64_t>(MR, m - i); ++r)
          for (int64_t c = 0; c < n; ++c)
            p[r * D + c] = edge[r * P + c] + (add ? p[r * D + c] : T(0));
      }
    }
  }
}

}  // namespace fused_contrastive::FUSED_ISA
