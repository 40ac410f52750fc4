// Prepare: normalise in T, round to the matrix type, save, and copy into the layouts of gemm.h. O(n D) work and bytes.
#pragma once

#include "convert.h"
#include "gemm.h"
#include "team.h"

namespace fused_contrastive::FUSED_ISA {

constexpr double NORM_FLOOR = 1e-12;

template <class T>
T dot(const T* x, const T* y, int64_t n) {
  using V = Vec<T>;
  V s0(T(0)), s1(T(0));
  int64_t k = 0;
  for (; k + 2 * V::W <= n; k += 2 * V::W) {
    s0 = fma(V::load(x + k), V::load(y + k), s0);
    s1 = fma(V::load(x + k + V::W), V::load(y + k + V::W), s1);
  }
  T s = sum(s0 + s1);
  for (; k < n; ++k) s += x[k] * y[k];
  return s;
}

// The packed copies of one set in one group; t or p is null where it is not needed.
template <class C>
struct Packed {
  using T = typename C::T;
  using Unit = typename C::Unit;
  static constexpr int P = PANEL<T>;
  int64_t n, D, units, width, p_stride;
  Unit *t = nullptr, *p = nullptr;
  T* row_norm = nullptr;  // largest squared norm of each panel of P rows

  // Rows that only ever are the left side need no full panel: `narrow` keeps many tiny groups small.
  Packed(Runtime* runtime, int64_t n, int64_t D, bool left_or_right, bool values, bool narrow) : n(n), D(D) {
    units = (D + C::PAIR - 1) / C::PAIR;
    width = narrow && n < P ? (n + MR - 1) / MR * MR : P;
    p_stride = (n + C::PAIR - 1) / C::PAIR * P;
    if (left_or_right) t = allocate<Unit>(runtime, (n + width - 1) / width * width * units);
    if (values) p = allocate<Unit>(runtime, (D + P - 1) / P * p_stride);
    row_norm = allocate<T>(runtime, panels());
  }
  int64_t panels() const { return (n + P - 1) / P; }
  const Unit* rows(int64_t i) const { return t + i / width * width * units + i % width; }
  const Unit* values(int64_t i) const { return p + i / C::PAIR * P; }
};

template <class C>
FUSED_INLINE typename C::Unit unit(typename C::T x, typename C::T y) {
  if constexpr (C::PAIR == 2)
    return bits_of(x) >> 16 | (bits_of(y) & 0xffff0000);  // both are bf16 numbers already
  else
    return x;
}

// Copies m <= P rows [m, D] of values of the matrix type, the set's rows from i0 on.
template <class C>
void pack(const Packed<C>& packed, int64_t i0, int64_t m, const typename C::T* rows) {
  using T = typename C::T;
  using Unit = typename C::Unit;
  constexpr int P = PANEL<T>;
  const int64_t D = packed.D, width = packed.width;
  if (packed.t) {
    Unit* out = packed.t + i0 / width * width * packed.units;
    for (int64_t k = 0; k < packed.units; ++k, out += width) {
      const T* x = rows + k * C::PAIR;
      const bool pair = C::PAIR == 2 && k * C::PAIR + 1 < D;
      for (int64_t r = 0; r < m; ++r) out[r] = unit<C>(x[r * D], pair ? x[r * D + 1] : T(0));
      for (int64_t r = m; r < width; ++r) out[r] = Unit(0);
    }
  }
  if (packed.p) {
    for (int64_t r = 0; r < m; r += C::PAIR) {
      Unit* out = packed.p + (i0 + r) / C::PAIR * P;
      const T *x = rows + r * D, *y = C::PAIR == 2 && r + 1 < m ? x + D : nullptr;
      for (int64_t d = 0; d < D; d += P, out += packed.p_stride) {
        const int64_t n = std::min<int64_t>(P, D - d);
        for (int64_t c = 0; c < n; ++c) out[c] = unit<C>(x[d + c], y ? y[d + c] : T(0));
        for (int64_t c = n; c < P; ++c) out[c] = Unit(0);
      }
    }
  }
}

// Forward: x -> hat, inv and the packed copies. Without normalisation hat is the rounded x, and null where x needs no rounding.
template <class C>
void prepare(Team& team, const Set& set, int64_t g, bool normalize, Type matrix, const Packed<C>& packed) {
  using T = typename C::T;
  constexpr int P = PANEL<T>;
  const int64_t D = packed.D, n = packed.n;
  team.tasks(packed.panels(), [&](int64_t task, int thread) {
    T* rows = team.template scratch<T>(thread);
    const int64_t i0 = task * P, m = std::min<int64_t>(P, n - i0);
    T largest = 0;
    for (int64_t r = 0; r < m; ++r) {
      T* x = rows + r * D;
      load_row(offset_by(set.x, set.type, g * set.group_stride + (i0 + r) * set.row_stride), set.type, D, x);
      if (normalize) {
        const T norm = std::sqrt(dot(x, x, D)), floor = T(NORM_FLOOR);
        const T inv = T(1) / (norm < floor ? floor : norm);
        static_cast<T*>(set.inv)[g * n + i0 + r] = inv;
        for (int64_t k = 0; k < D; ++k) x[k] *= inv;
      }
      if (set.hat) {
        void* hat = offset_by(set.hat, matrix, (g * n + i0 + r) * D);
        store_row(x, D, hat, matrix);
        if (size_of(matrix) == 2) load_row(hat, matrix, D, x);
      }
      const T square = dot(x, x, D);
      if (!(square <= largest) && largest == largest) largest = square;  // NaN and inf stay
    }
    packed.row_norm[task] = largest;
    pack(packed, i0, m, rows);
  });
}

// Row i of the matrix the products read: hat, or x where hat is absent.
template <class T>
void load_rounded(const Set& set, int64_t g, int64_t i, int64_t D, Type matrix, T* out) {
  if (set.hat)
    load_row(offset_by(set.hat, matrix, (g * set.n + i) * D), matrix, D, out);
  else
    load_row(offset_by(set.x, set.type, g * set.group_stride + i * set.row_stride), set.type, D, out);
}

// Backward: the packed copies of what the forward saved.
template <class C>
void repack(Team& team, const Set& set, int64_t g, Type matrix, const Packed<C>& packed) {
  using T = typename C::T;
  constexpr int P = PANEL<T>;
  team.tasks(packed.panels(), [&](int64_t task, int thread) {
    T* rows = team.template scratch<T>(thread);
    const int64_t i0 = task * P, m = std::min<int64_t>(P, packed.n - i0);
    for (int64_t r = 0; r < m; ++r) load_rounded(set, g, i0 + r, packed.D, matrix, rows + r * packed.D);
    pack(packed, i0, m, rows);
  });
}

}  // namespace fused_contrastive::FUSED_ISA
