// Prepares the rows: normalises them in T, rounds them to the matrix type, saves them, and copies
// them into the layouts of gemm.h. O(n D) work and bytes.
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

// The packed copies of one set in one group. t or p is null where it is not needed.
template <class C>
struct Packed {
  using T = typename C::T;
  using Unit = typename C::Unit;
  static constexpr int P = PANEL<T>;
  int64_t n, D, units, width, p_stride;
  Unit *t = nullptr, *p = nullptr;
  // The largest squared norm, or a bound on it, of each panel of P rows.
  T* row_norm = nullptr;

  // Rows that are only ever the left side need no full panel: `narrow` keeps many tiny groups
  // small.
  Packed(Runtime* runtime, int64_t n, int64_t D, bool left_or_right, bool values, bool narrow)
      : n(n), D(D) {
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

// The rows to pack, as units along a row. They are views of the set's own memory where its type
// allows, else converted into a buffer.
template <class C>
class UnitRows {
  using T = typename C::T;
  using Unit = typename C::Unit;

 public:
  UnitRows(Unit* buffer, int64_t units) : buffer_(buffer), units_(units) {}

  // Sets row r of at most PANEL consecutive ones, which lie at equal strides.
  void set(int64_t r, const void* p, Type type, int64_t D) {
    if constexpr (C::PAIR == 2) {
      Unit* row = buffer_ + r * units_;
      row[units_ - 1] = 0;
      std::memcpy(row, p, size_t(2 * D));
    } else if (type != TYPE<T>) {
      load_row(p, type, D, buffer_ + r * units_);
    } else {
      const T* row = static_cast<const T*>(p);
      if (r == 0) first_ = row;
      if (r == 1) stride_ = row - first_;
      return;
    }
    first_ = buffer_, stride_ = units_;
  }
  const Unit* operator()(int64_t r) const { return first_ + r * stride_; }
  int64_t stride() const { return stride_; }

 private:
  Unit* buffer_;
  int64_t units_, stride_ = 0;
  const Unit* first_ = nullptr;
};

// Copies m <= P rows, the set's rows from i0 on.
template <class C>
void pack(const Packed<C>& packed, int64_t i0, int64_t m, const UnitRows<C>& rows) {
  using T = typename C::T;
  using Unit = typename C::Unit;
  constexpr int P = PANEL<T>, S = TRANSPOSED<Unit>;
  const int64_t D = packed.D, width = packed.width, units = packed.units;
  if (packed.t) {
    Unit* out = packed.t + i0 / width * width * units;
    int64_t r = 0;
    for (; r + S <= m; r += S) {
      int64_t k = 0;
      for (; k + S <= units; k += S)
        transpose(rows(r) + k, rows.stride(), out + k * width + r, width);
      for (; k < units; ++k)
        for (int64_t x = r; x < r + S; ++x) out[k * width + x] = rows(x)[k];
    }
    for (; r < m; ++r)
      for (int64_t k = 0; k < units; ++k) out[k * width + r] = rows(r)[k];
    for (int64_t k = 0; r < width && k < units; ++k)
      std::fill(out + k * width + r, out + (k + 1) * width, Unit(0));
  }
  if (packed.p) {
    for (int64_t r = 0; r < m; r += C::PAIR) {
      Unit* out = packed.p + (i0 + r) / C::PAIR * P;
      for (int64_t d = 0; d < D; d += P, out += packed.p_stride) {
        const int64_t n = std::min<int64_t>(P, D - d);
        if constexpr (C::PAIR == 2) {
          const Unit *x = rows(r) + d / 2, *y = rows(r + 1 < m ? r + 1 : r) + d / 2;
          const Unit keep = r + 1 < m ? ~Unit(0) : 0;
          for (int64_t c = 0; c < (n + 1) / 2; ++c) {
            out[2 * c] = (x[c] & 0xffff) | (y[c] & keep) << 16;
            out[2 * c + 1] = x[c] >> 16 | (y[c] & keep & 0xffff0000);
          }
          std::fill(out + (n + 1) / 2 * 2, out + P, Unit(0));
        } else {
          std::copy_n(rows(r) + d, n, out);
          std::fill(out + n, out + P, Unit(0));
        }
      }
    }
  }
}

// Row i of the matrix that the products read: hat, or x where hat is absent.
inline const void* rounded(const Set& set, int64_t g, int64_t i, int64_t D, Type matrix,
                           Type* type) {
  *type = set.hat ? matrix : set.type;
  return set.hat ? offset_by(static_cast<const void*>(set.hat), matrix, (g * set.n + i) * D)
                 : offset_by(set.x, set.type, g * set.group_stride + i * set.row_stride);
}

template <class T>
const T* rounded_row(const Set& set, int64_t g, int64_t i, int64_t D, Type matrix, T* buffer) {
  Type type;
  const void* row = rounded(set, g, i, D, matrix, &type);
  return row_in(row, type, D, buffer);
}

inline const void* input(const Set& set, int64_t g, int64_t i) {
  return offset_by(set.x, set.type, g * set.group_stride + i * set.row_stride);
}

// Forward: makes hat, inv and the packed copies of x. Without normalisation hat is the rounded x,
// and null where x needs no rounding.
template <class C>
void prepare(Worker& worker, const Set& set, int64_t g, bool normalize, Type matrix,
             const Packed<C>& packed) {
  using T = typename C::T;
  constexpr int P = PANEL<T>;
  const int64_t D = packed.D, n = packed.n;
  worker.tasks(packed.panels(), [&](int64_t task) {
    T* buffer = worker.scratch<T>();
    UnitRows<C> rows(reinterpret_cast<typename C::Unit*>(buffer + D), packed.units);
    const int64_t i0 = task * P, m = std::min<int64_t>(P, n - i0);
    // Rounding a unit vector moves its norm by less than 2^-8.
    T largest = normalize ? T(1.02) : T(0);
    for (int64_t r = 0; r < m; ++r) {
      const void* given = input(set, g, i0 + r);
      const T* x = row_in(given, set.type, D, buffer);
      const T square = dot(x, x, D);
      T inv = 1;
      if (normalize) {
        const T norm = std::sqrt(square), floor = T(NORM_FLOOR);
        inv = T(1) / (norm < floor ? floor : norm);
        static_cast<T*>(set.inv)[g * n + i0 + r] = inv;
      } else if (!(square <= largest) && largest == largest) {
        largest = square;  // NaN and inf stay.
      }
      if (set.hat) {
        void* hat = offset_by(set.hat, matrix, (g * n + i0 + r) * D);
        T* y = matrix == TYPE<T> ? static_cast<T*>(hat) : buffer;
        for (int64_t k = 0; k < D; ++k) y[k] = x[k] * inv;
        if (matrix != TYPE<T>) store_row(y, D, hat, matrix);
        given = hat;
      }
      rows.set(r, given, set.hat ? matrix : set.type, D);
    }
    packed.row_norm[task] = largest;
    pack(packed, i0, m, rows);
  });
}

// Backward: makes the packed copies of panel `task` from what the forward pass saved.
template <class C>
void repack(Worker& worker, const Set& set, int64_t g, Type matrix, const Packed<C>& packed,
            int64_t task) {
  using T = typename C::T;
  constexpr int P = PANEL<T>;
  UnitRows<C> rows(worker.scratch<typename C::Unit>(), packed.units);
  const int64_t i0 = task * P, m = std::min<int64_t>(P, packed.n - i0);
  for (int64_t r = 0; r < m; ++r) {
    Type type;
    const void* row = rounded(set, g, i0 + r, packed.D, matrix, &type);
    rows.set(r, row, type, packed.D);
  }
  pack(packed, i0, m, rows);
}

}  // namespace fused_contrastive::FUSED_ISA
