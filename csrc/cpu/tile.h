// One tile of logits, t = log2(e) (scale <a_i, b_j> + bias_j), -inf where j is no candidate of i.
// It is handed on in blocks of MR rows by PANEL columns while they are in the first-level cache.
// Passes differ only in what they do to such a block.
#pragma once

#include <utility>

#include "pack.h"
#include "running_sum.h"

namespace fused_contrastive::FUSED_ISA {

// Blocks are whole panels. Larger ones serve larger problems, for which there are still enough
// blocks to share.
inline int64_t block_size(int64_t M, int64_t N, int64_t D, bool one_set) {
  if (one_set && N <= 256) return 32;
  if (std::max(M, N) <= 1024) return 64;
  return std::min(M, N) >= 4096 && D >= 256 ? 256 : 128;
}

// Writes the logits' additive part in units of log 2, padded to whole panels. Returns the largest
// finite |bias|, or a NaN or +inf itself.
template <class T>
double additive(const Problem& p, int64_t g, int64_t size, T* add) {
  double largest = 0;
  for (int64_t j = 0; j < size; ++j) {
    const double x = p.bias && j < p.b.n ? double(static_cast<const T*>(p.bias)[g * p.b.n + j]) : 0;
    add[j] = T(x * LOG2_E);
    if (!(std::fabs(x) <= largest) && largest == largest &&
        x != -std::numeric_limits<double>::infinity())
      largest = std::fabs(x);
  }
  return largest;
}

template <class T>
struct Candidates {
  Kind kind;
  int64_t offset, stride;
  const int32_t *key_a, *key_b;

  Candidates(const Problem& p, int64_t g)
      : kind(p.kind),
        offset(p.offset),
        stride(p.stride),
        key_a(p.key_a ? p.key_a + g * p.a.n : nullptr),
        key_b(p.key_b ? p.key_b + g * p.b.n : nullptr) {}

  // Whether rows [i0, i1) by columns [j0, j1) contain a pair that is not a candidate. For keys:
  // whether they may contain one.
  bool masks(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const int64_t low = j0 - (i1 - 1) - offset, high = (j1 - 1) - i0 - offset;
    if (kind == Kind::NotSelf) return low <= 0 && 0 <= high;
    if (kind == Kind::NotPair) return high - floor_mod(high, stride) >= low;
    return kind != Kind::All;
  }

  // Whether rows [i0, i1) by columns [j0, j1) can contain a candidate. Where equal keys are sorted,
  // few blocks do.
  bool any(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    if (kind != Kind::SameKey) return true;
    const auto [low_a, high_a] = std::minmax_element(key_a + i0, key_a + i1);
    const auto [low_b, high_b] = std::minmax_element(key_b + j0, key_b + j1);
    return *low_a <= *high_b && *low_b <= *high_a;
  }

  // Writes -inf over the pairs that are not candidates, in m rows from i0 by n columns from j0.
  void mask(int64_t i0, int64_t m, int64_t j0, int64_t n, T* t, int64_t ld) const {
    constexpr T none = -std::numeric_limits<T>::infinity();
    for (int64_t i = i0; i < i0 + m; ++i, t += ld) {
      if (kind == Kind::NotPair)
        for (int64_t j = floor_mod(i + offset - j0, stride); j < n; j += stride) t[j] = none;
      if (kind == Kind::OtherKey)
        for (int64_t j = 0; j < n; ++j) t[j] = key_b[j0 + j] != key_a[i] ? t[j] : none;
      if (kind == Kind::SameKey)
        for (int64_t j = 0; j < n; ++j) t[j] = key_b[j0 + j] == key_a[i] ? t[j] : none;
      const int64_t self = i + offset - j0;
      if ((kind == Kind::NotSelf || kind == Kind::SameKey) && 0 <= self && self < n) t[self] = none;
    }
  }

  static int64_t floor_mod(int64_t x, int64_t y) {
    const int64_t r = x % y;
    return r < 0 ? r + y : r;
  }
};

// Memory of one thread of a tile pass, for blocks of at most `size` rows and columns. by_rows and
// by_columns hold the tile of weights as the left side of W z and of W^T z.
template <class C>
struct TileScratch {
  using T = typename C::T;
  using Unit = typename C::Unit;
  static constexpr int P = PANEL<T>, W = Vec<T>::W;
  T *block, *row_vectors, *column_sums, *u, *v, *tile;
  Unit *by_rows, *by_columns;

  TileScratch(T* memory, int64_t size) {
    const auto take = [&](int64_t n) { return std::exchange(memory, memory + n); };
    block = take(MR * P), row_vectors = take(size * W), column_sums = take(size), u = take(size),
    v = take(size);
    tile = take(size * size);
    by_rows = reinterpret_cast<Unit*>(take(size * size / C::PAIR));
    by_columns = C::PAIR == 1 ? by_rows : reinterpret_cast<Unit*>(take(size * size / C::PAIR));
  }
  static int64_t bytes(int64_t size, int64_t D) {
    return int64_t(sizeof(T)) *
           std::max<int64_t>((P + 1) * (D + 1), MR * P + size * (W + 3) + 2 * size * size);
  }
};

// Calls visit(i, m, j, t, ld, columns) for each block of m rows from I.begin + i and NR * W columns
// from J.begin + j, with NR = columns(). With `whole`, t is the place of the block in a tile of
// leading dimension ld, else a buffer that the next block overwrites. With `upper`, blocks wholly
// below the diagonal are left out.
template <class C, class F>
FUSED_INLINE void logits_tile(const Packed<C>& a, const Packed<C>& b, const Block& I,
                              const Block& J, Factor<typename C::T> factor,
                              const typename C::T* add, const Candidates<typename C::T>& candidates,
                              typename C::T* out, int64_t ld, bool whole, bool upper, F visit) {
  using T = typename C::T;
  constexpr int P = PANEL<T>, W = Vec<T>::W;
  const bool masked = candidates.masks(I.begin, I.end, J.begin, J.end);
  for (int64_t j = 0; j < J.size(); j += P) {
    const int64_t n = std::min<int64_t>(P, J.size() - j);
    const auto panel = [&](auto columns) {
      for (int64_t i = 0; i < (upper ? std::min(I.size(), j + P) : I.size()); i += MR) {
        const int64_t m = std::min<int64_t>(MR, I.size() - i), row = I.begin + i,
                      column = J.begin + j;
        T* t = whole ? out + i * ld + j : out;
        logits_block<C, columns()>(a.rows(row), a.width, b.rows(column), a.units, factor, add + j,
                                   t, ld);
        if (masked && candidates.masks(row, row + m, column, column + n))
          candidates.mask(row, m, column, n, t, ld);
        if (n < columns() * W)
          for (int64_t r = 0; r < m; ++r)
            std::fill(t + r * ld + n, t + r * ld + columns() * W,
                      -std::numeric_limits<T>::infinity());
        visit(i, m, j, t, ld, columns);
      }
    };
    if (n > W)
      panel(std::integral_constant<int, 2>());
    else
      panel(std::integral_constant<int, 1>());
  }
}

// Stores the weights x, y of two adjacent rows (an even one and the next) at column j of the tile.
template <class C>
FUSED_INLINE void store_weights(const TileScratch<C>& s, int64_t size, int64_t row, int64_t j,
                                Vec<typename C::T> x, Vec<typename C::T> y, bool second) {
#if defined(FUSED_BF16)
  if constexpr (C::PAIR == 2) {
    const __m256bh p = _mm512_cvtneps_pbh(x.v), q = _mm512_cvtneps_pbh(y.v);
    char* rows = reinterpret_cast<char*>(s.by_rows) + 2 * (row * size + j);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows), __m256i(p));
    if (second) _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + 2 * size), __m256i(q));
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(__m256i(q)), 16);
    _mm512_storeu_si512(s.by_columns + row / 2 * size + j,
                        _mm512_or_si512(_mm512_cvtepu16_epi32(__m256i(p)), high));
    return;
  }
#endif
  if constexpr (C::PAIR == 1) {
    x.store(s.by_rows + row * size + j);
    if (second) y.store(s.by_rows + (row + 1) * size + j);
  }
}

// out [I.size(), D] (+)= W z_J and out [J.size(), D] (+)= W^T z_I for the weights in `s`.
template <class C>
void add_rows(const TileScratch<C>& s, int64_t size, const Block& I, const Block& J,
              const Packed<C>& z, typename C::T* out, bool add) {
  product<C>(s.by_rows, size / C::PAIR, 1, I.size(), z.values(J.begin), z.p_stride,
             (J.size() + C::PAIR - 1) / C::PAIR, out, z.D, add);
}
template <class C>
void add_columns(const TileScratch<C>& s, int64_t size, const Block& I, const Block& J,
                 const Packed<C>& z, typename C::T* out, bool add) {
  product<C>(s.by_columns, 1, size, J.size(), z.values(I.begin), z.p_stride,
             (I.size() + C::PAIR - 1) / C::PAIR, out, z.D, add);
}

}  // namespace fused_contrastive::FUSED_ISA
