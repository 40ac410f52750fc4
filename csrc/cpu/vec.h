// Vectors of float and double for the instruction set of the including file. That file defines
// FUSED_ISA (a namespace name) and is compiled with the matching flags: AVX-512, AVX2 + FMA, or the
// portable form. The portable form is plain loops that any compiler vectorises.
//
// maximum(a, b) returns b where either is NaN. exp2 is 2^t to 1.5 ulp. It is 0 far below the
// smallest normal number (and at -inf), +inf or NaN at +inf, NaN at NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(FUSED_AVX512) || defined(FUSED_AVX2)
#include <immintrin.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define FUSED_INLINE inline __attribute__((always_inline))
#else
#define FUSED_INLINE inline
#endif

namespace fused_contrastive::FUSED_ISA {

template <class T>
struct Vec;

// Minimax polynomials of 2^f for |f| <= 1/2. Their relative errors are 7.5e-8 (degree 5) and
// 3.1e-18 (degree 11).
template <class V>
FUSED_INLINE V exp2_polynomial(V f, float) {
  V p = fma(f, V(0.0013276472631950876f), V(0.0096755413431213274f));
  p = fma(p, f, V(0.055507132718556442f));
  p = fma(p, f, V(0.24022119723710720f));
  p = fma(p, f, V(0.69314696706503521f));
  return fma(p, f, V(1.0000000716547141f));
}

template <class V>
FUSED_INLINE V exp2_polynomial(V f, double) {
  V p = fma(f, V(4.4352827069572771511e-10), V(7.0741056135081427963e-9));
  p = fma(p, f, V(1.0178198021671930844e-7));
  p = fma(p, f, V(1.321543308967639918e-6));
  p = fma(p, f, V(0.000015252733489988525649));
  p = fma(p, f, V(0.00015403530462514432062));
  p = fma(p, f, V(0.0013333558146789921722));
  p = fma(p, f, V(0.0096181291075883352443));
  p = fma(p, f, V(0.055504108664819921605));
  p = fma(p, f, V(0.24022650695910156204));
  p = fma(p, f, V(0.69314718055994533046));
  return fma(p, f, V(1.0));
}

#if defined(FUSED_AVX512)

template <>
struct Vec<float> {
  static constexpr int W = 16;
  __m512 v;
  Vec() = default;
  FUSED_INLINE Vec(__m512 x) : v(x) {}
  FUSED_INLINE explicit Vec(float x) : v(_mm512_set1_ps(x)) {}
  static FUSED_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
  FUSED_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
};
template <>
struct Vec<double> {
  static constexpr int W = 8;
  __m512d v;
  Vec() = default;
  FUSED_INLINE Vec(__m512d x) : v(x) {}
  FUSED_INLINE explicit Vec(double x) : v(_mm512_set1_pd(x)) {}
  static FUSED_INLINE Vec load(const double* p) { return _mm512_loadu_pd(p); }
  FUSED_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
};
using VF = Vec<float>;
using VD = Vec<double>;
FUSED_INLINE VF operator+(VF a, VF b) { return _mm512_add_ps(a.v, b.v); }
FUSED_INLINE VF operator-(VF a, VF b) { return _mm512_sub_ps(a.v, b.v); }
FUSED_INLINE VF operator*(VF a, VF b) { return _mm512_mul_ps(a.v, b.v); }
FUSED_INLINE VF operator/(VF a, VF b) { return _mm512_div_ps(a.v, b.v); }
FUSED_INLINE VF fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
FUSED_INLINE VF maximum(VF a, VF b) { return _mm512_max_ps(a.v, b.v); }
FUSED_INLINE VF square_root(VF a) { return _mm512_sqrt_ps(a.v); }
FUSED_INLINE float sum(VF a) { return _mm512_reduce_add_ps(a.v); }
FUSED_INLINE VD operator+(VD a, VD b) { return _mm512_add_pd(a.v, b.v); }
FUSED_INLINE VD operator-(VD a, VD b) { return _mm512_sub_pd(a.v, b.v); }
FUSED_INLINE VD operator*(VD a, VD b) { return _mm512_mul_pd(a.v, b.v); }
FUSED_INLINE VD operator/(VD a, VD b) { return _mm512_div_pd(a.v, b.v); }
FUSED_INLINE VD fma(VD a, VD b, VD c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
FUSED_INLINE VD maximum(VD a, VD b) { return _mm512_max_pd(a.v, b.v); }
FUSED_INLINE VD square_root(VD a) { return _mm512_sqrt_pd(a.v); }
FUSED_INLINE double sum(VD a) { return _mm512_reduce_add_pd(a.v); }

FUSED_INLINE VF exp2(VF t) {
  t = maximum(VF(-200.f), t);
  const VF n = _mm512_roundscale_ps(t.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_polynomial(t - n, 0.f).v, n.v);
}
FUSED_INLINE VD exp2(VD t) {
  t = maximum(VD(-1200.), t);
  const VD n = _mm512_roundscale_pd(t.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_pd(exp2_polynomial(t - n, 0.).v, n.v);
}

#elif defined(FUSED_AVX2)

template <>
struct Vec<float> {
  static constexpr int W = 8;
  __m256 v;
  Vec() = default;
  FUSED_INLINE Vec(__m256 x) : v(x) {}
  FUSED_INLINE explicit Vec(float x) : v(_mm256_set1_ps(x)) {}
  static FUSED_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
  FUSED_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
};
template <>
struct Vec<double> {
  static constexpr int W = 4;
  __m256d v;
  Vec() = default;
  FUSED_INLINE Vec(__m256d x) : v(x) {}
  FUSED_INLINE explicit Vec(double x) : v(_mm256_set1_pd(x)) {}
  static FUSED_INLINE Vec load(const double* p) { return _mm256_loadu_pd(p); }
  FUSED_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
};
using VF = Vec<float>;
using VD = Vec<double>;
FUSED_INLINE VF operator+(VF a, VF b) { return _mm256_add_ps(a.v, b.v); }
FUSED_INLINE VF operator-(VF a, VF b) { return _mm256_sub_ps(a.v, b.v); }
FUSED_INLINE VF operator*(VF a, VF b) { return _mm256_mul_ps(a.v, b.v); }
FUSED_INLINE VF operator/(VF a, VF b) { return _mm256_div_ps(a.v, b.v); }
FUSED_INLINE VF fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
FUSED_INLINE VF maximum(VF a, VF b) { return _mm256_max_ps(a.v, b.v); }
FUSED_INLINE VF square_root(VF a) { return _mm256_sqrt_ps(a.v); }
FUSED_INLINE VD operator+(VD a, VD b) { return _mm256_add_pd(a.v, b.v); }
FUSED_INLINE VD operator-(VD a, VD b) { return _mm256_sub_pd(a.v, b.v); }
FUSED_INLINE VD operator*(VD a, VD b) { return _mm256_mul_pd(a.v, b.v); }
FUSED_INLINE VD operator/(VD a, VD b) { return _mm256_div_pd(a.v, b.v); }
FUSED_INLINE VD fma(VD a, VD b, VD c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
FUSED_INLINE VD maximum(VD a, VD b) { return _mm256_max_pd(a.v, b.v); }
FUSED_INLINE VD square_root(VD a) { return _mm256_sqrt_pd(a.v); }

template <class T>
FUSED_INLINE T sum(Vec<T> a) {
  T x[Vec<T>::W];
  a.store(x);
  for (int step = Vec<T>::W / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) x[i] += x[i + step];
  return x[0];
}

// 1.5 * 2^23 (in double 1.5 * 2^52) added to t leaves round(t) in the low bits, from where it is
// shifted into the exponent.
FUSED_INLINE VF exp2(VF t) {
  const VF tiny(-126.f), magic(12582912.f);
  const __m256 kept = _mm256_cmp_ps(t.v, tiny.v, _CMP_NLT_UQ);
  t = _mm256_min_ps(_mm256_set1_ps(128.f), maximum(tiny, t).v);
  const VF shifted = t + magic;
  const VF p = exp2_polynomial(t - (shifted - magic), 0.f);
  const __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23),
                                        _mm256_set1_epi32(127 << 23));
  return _mm256_and_ps(kept, _mm256_mul_ps(p.v, _mm256_castsi256_ps(bits)));
}
FUSED_INLINE VD exp2(VD t) {
  const VD tiny(-1022.), magic(6755399441055744.);
  const __m256d kept = _mm256_cmp_pd(t.v, tiny.v, _CMP_NLT_UQ);
  t = _mm256_min_pd(_mm256_set1_pd(1024.), maximum(tiny, t).v);
  const VD shifted = t + magic;
  const VD p = exp2_polynomial(t - (shifted - magic), 0.);
  const __m256i bits = _mm256_add_epi64(_mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52),
                                        _mm256_set1_epi64x(1023LL << 52));
  return _mm256_and_pd(kept, _mm256_mul_pd(p.v, _mm256_castsi256_pd(bits)));
}

#else

template <class T>
struct Vec {
  static constexpr int W = 16 / sizeof(T);
  T v[W];
  Vec() = default;
  FUSED_INLINE explicit Vec(T x) {
    for (T& y : v) y = x;
  }
  static FUSED_INLINE Vec load(const T* p) {
    Vec r;
    std::memcpy(r.v, p, sizeof(r.v));
    return r;
  }
  FUSED_INLINE void store(T* p) const { std::memcpy(p, v, sizeof(v)); }
};
#define FUSED_LOOP(expression)                             \
  Vec<T> r;                                                \
  for (int i = 0; i < Vec<T>::W; ++i) r.v[i] = expression; \
  return r
template <class T>
FUSED_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  FUSED_LOOP(a.v[i] + b.v[i]);
}
template <class T>
FUSED_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  FUSED_LOOP(a.v[i] - b.v[i]);
}
template <class T>
FUSED_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  FUSED_LOOP(a.v[i] * b.v[i]);
}
template <class T>
FUSED_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  FUSED_LOOP(a.v[i] / b.v[i]);
}
template <class T>
FUSED_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  FUSED_LOOP(a.v[i] * b.v[i] + c.v[i]);
}
template <class T>
FUSED_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
  FUSED_LOOP(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
template <class T>
FUSED_INLINE Vec<T> square_root(Vec<T> a) {
  FUSED_LOOP(std::sqrt(a.v[i]));
}
#undef FUSED_LOOP
template <class T>
FUSED_INLINE T sum(Vec<T> a) {
  T s = 0;
  for (T x : a.v) s += x;
  return s;
}

template <class T>
FUSED_INLINE Vec<T> exp2(Vec<T> t) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int mantissa = sizeof(T) == 4 ? 23 : 52;
  constexpr Bits exponent = sizeof(T) == 4 ? 127 : 1023;
  constexpr T magic = sizeof(T) == 4 ? T(12582912.) : T(6755399441055744.);
  const T tiny = T(1) - T(exponent), huge = T(exponent) + T(1);
  Vec<T> power, f;
  for (int i = 0; i < Vec<T>::W; ++i) {
    T x = tiny > t.v[i] ? tiny : t.v[i];
    x = huge < x ? huge : x;
    const T shifted = x + magic;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof(T));
    bits = (bits << mantissa) + (exponent << mantissa);
    std::memcpy(&power.v[i], &bits, sizeof(T));
    f.v[i] = x - (shifted - magic);
  }
  Vec<T> r = exp2_polynomial(f, T(0)) * power;
  for (int i = 0; i < Vec<T>::W; ++i) r.v[i] = t.v[i] < tiny ? T(0) : r.v[i];
  return r;
}

#endif

// out[c * ld_out + r] = in[r * ld_in + c] for blocks of S x S elements with S = TRANSPOSED<U>:
// elements of 4 bytes (AVX-512, AVX2), or others.
template <class U>
constexpr int TRANSPOSED = sizeof(U) == 4 && Vec<float>::W > 4 ? Vec<float>::W : 4;

template <class U>
FUSED_INLINE void transpose(const U* in, int64_t ld_in, U* out, int64_t ld_out) {
#if defined(FUSED_AVX512)
  if constexpr (sizeof(U) == 4) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_si512(in + r * ld_in);
#pragma GCC unroll 16
    for (int r = 0; r < 16; r += 2) {
      b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
      a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    // Lane l of a[4 i + c] holds column 4 l + c of rows 4 i ... 4 i + 3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512i p = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44),
                    q = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x44);
      const __m512i s = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xee),
                    t = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xee);
      _mm512_storeu_si512(out + c * ld_out, _mm512_shuffle_i32x4(p, q, 0x88));
      _mm512_storeu_si512(out + (4 + c) * ld_out, _mm512_shuffle_i32x4(p, q, 0xdd));
      _mm512_storeu_si512(out + (8 + c) * ld_out, _mm512_shuffle_i32x4(s, t, 0x88));
      _mm512_storeu_si512(out + (12 + c) * ld_out, _mm512_shuffle_i32x4(s, t, 0xdd));
    }
    return;
  }
#elif defined(FUSED_AVX2)
  if constexpr (sizeof(U) == 4) {
    __m256i a[8], b[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
      a[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + r * ld_in));
#pragma GCC unroll 8
    for (int r = 0; r < 8; r += 2) {
      b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < 8; r += 4) {
      a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const auto store = [&](int column, __m256i x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + column * ld_out), x);
      };
      store(c, _mm256_permute2x128_si256(a[c], a[4 + c], 0x20));
      store(4 + c, _mm256_permute2x128_si256(a[c], a[4 + c], 0x31));
    }
    return;
  }
#endif
  for (int c = 0; c < TRANSPOSED<U>; ++c)
    for (int r = 0; r < TRANSPOSED<U>; ++r) out[c * ld_out + r] = in[r * ld_in + c];
}

template <class T>
FUSED_INLINE T maximum_of(Vec<T> a) {
  T x[Vec<T>::W];
  a.store(x);
  return *std::max_element(x, x + Vec<T>::W);
}

}  // namespace fused_contrastive::FUSED_ISA
