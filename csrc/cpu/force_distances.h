// Rows of distances of one group, the sums of distances, and their gradient. Distances come from
// differences, so that nothing cancels wherever the points lie.
//
// Flops: 3 P^2 D. That is a difference and a multiply-add per pair and feature: two vector
// instructions for the one of a product. A task is a block of rows with all columns, whose
// distances stay in the second-level cache. A small group is one block, whose distances are
// computed once for all passes.
#pragma once

#include "force.h"
#include "tile.h"

namespace fused_contrastive::FUSED_ISA {

template <class T>
constexpr T NONE = -std::numeric_limits<T>::infinity();

// The shift of a sum of exponentials whose largest exponent is `top`.
template <class T>
T finite(T top) {
  return top == NONE<T> ? T(0) : top;
}

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// A vector of n < W elements, then of `fill`.
template <class T>
FUSED_INLINE Vec<T> partial(const T* p, int64_t n, T fill) {
  T x[Vec<T>::W];
  for (int64_t i = 0; i < Vec<T>::W; ++i) x[i] = i < n ? p[i] : fill;
  return Vec<T>::load(x);
}

// Calls f(j, load) over [begin, end), where load(p, fill) is the vector of p from j on. Past the
// end every array reads as its `fill`.
template <class T, class F>
FUSED_INLINE void each(int64_t begin, int64_t end, F f) {
  int64_t j = begin;
  for (; j + Vec<T>::W <= end; j += Vec<T>::W)
    f(j, [j](const T* p, T) { return Vec<T>::load(p + j); });
  if (j < end) f(j, [j, end](const T* p, T fill) { return partial(p + j, end - j, fill); });
}

template <class T>
T maximum_over(const T* x, int64_t begin, int64_t end) {
  Vec<T> top(NONE<T>);
  each<T>(begin, end, [&](int64_t, auto load) { top = maximum(top, load(x, NONE<T>)); });
  return maximum_of(top);
}

// Distances of MR rows to one vector of columns; the operands are as in gemm.h. Partial sums of 32
// squares are added up, so that long sums keep their accuracy.
template <class T>
FUSED_INLINE void distance_block(const T* a, const T* b, int64_t D, T clip, T* out, int64_t ld) {
  using V = Vec<T>;
  constexpr int P = PANEL<T>;
  V total[MR];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) total[r] = V(T(0));
  for (int64_t k0 = 0; k0 < D; k0 += 32) {
    V part[MR];
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) part[r] = V(T(0));
    const int64_t n = std::min<int64_t>(32, D - k0);
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k, a += P, b += P) {
      const V y = V::load(b);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const V difference = y - V(a[r]);
        part[r] = fma(difference, difference, part[r]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) total[r] = total[r] + part[r];
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) square_root(maximum(V(clip), total[r])).store(out + r * ld);
}

// out[r] = sum_j w[r * ld + j] (x_j - x_r) for MR rows by one vector of features. x [.][P] is a
// panel of gemm.h's z_p.
template <class T>
FUSED_INLINE void pull_block(const T* w, int64_t ld, const T* x, const T* rows, int64_t k, T* out) {
  using V = Vec<T>;
  constexpr int P = PANEL<T>;
  V total[MR], own[MR];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) total[r] = V(T(0)), own[r] = V::load(rows + r * P);
#pragma GCC unroll 2
  for (int64_t j = 0; j < k; ++j, x += P) {
    const V other = V::load(x);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) total[r] = fma(other - own[r], V(w[r * ld + j]), total[r]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) total[r].store(out + r * P);
}

// One group: its points packed by rows and, for weighted sums, by features; the blocks of its rows
// and their distances.
template <class T>
class Group {
  using C = Native<T>;
  static constexpr int P = PANEL<T>, W = Vec<T>::W;

 public:
  const int64_t n, D, ld;
  const int64_t block;  // rows of a task

  Group(const Points& points, Runtime* runtime, int threads, bool pulls, T clip)
      : n(points.P),
        D(points.D),
        ld(round_up(n, P)),
        block(block_rows(n, threads)),
        points_(points),
        clip_(clip),
        packed_(runtime, round_up(n, P), D, true, pulls, false) {}

  int64_t blocks(int64_t rows) const { return (rows + block - 1) / block; }
  // How many elements of scratch it needs: the distances of a block, or a panel of converted rows.
  int64_t scratch() const { return std::max(block * ld, P * D); }

  void prepare(Worker& worker, int64_t g) {
    if (worker.thread() == 0) fresh_ = true;
    worker.tasks(packed_.panels(), [&](int64_t task) { pack_panel(g, task, worker.scratch<T>()); });
  }

  // Computes rows [i0, i0 + m) of the distances to columns [j0, j1), at out[r * ld + j]. Where the
  // block is the whole group the first result is kept.
  void distances(int64_t i0, int64_t m, int64_t j0, int64_t j1, T* out) {
    const bool whole = block >= n;
    if (whole && !fresh_) return;
    if (whole) i0 = 0, m = n, j0 = 0, j1 = n, fresh_ = false;
    for (int64_t j = j0 / P * P; j < j1; j += W)
      for (int64_t r = 0; r < m; r += MR)
        distance_block(packed_.rows(i0 + r), packed_.t + j / P * P * D + j % P, D, clip_,
                       out + r * ld + j, ld);
  }

  // out [m, D] = factor sum_j w_rj (x_j - x_r) over all points, for rows i0 + r. The result may be
  // small beside its parts, so short sums are added up in double.
  void pulls(const T* w, int64_t i0, int64_t m, T factor, T* out) const {
    constexpr int64_t SHORT = 8;
    T part[MR * P];
    double sums[MR * P];
    for (int64_t d0 = 0; d0 < D; d0 += P)
      for (int64_t r = 0; r < m; r += MR) {
        const T *panel = packed_.p + d0 / P * packed_.p_stride, *rows = panel + (i0 + r) * P;
        std::fill_n(sums, MR * P, 0.0);
        for (int64_t j = 0; j < n; j += SHORT) {
          for (int c = 0; c < P; c += W)
            pull_block(w + r * ld + j, ld, panel + j * P + c, rows + c, std::min(SHORT, n - j),
                       part + c);
          for (int i = 0; i < MR * P; ++i) sums[i] += double(part[i]);
        }
        for (int64_t e = 0; e < std::min<int64_t>(MR, m - r); ++e)
          for (int64_t d = d0; d < std::min(D, d0 + P); ++d)
            out[(r + e) * D + d] = T(double(factor) * sums[e * P + d - d0]);
      }
  }

 private:
  static int64_t block_rows(int64_t n, int threads) {
    const int64_t share = threads > 1 ? (n + 4 * threads - 1) / (4 * threads) : n,
                  cached = (1 << 18) / round_up(n, P);
    return round_up(std::max<int64_t>(1, std::min(share, cached)), MR);
  }
  void pack_panel(int64_t g, int64_t task, T* buffer) {
    const int64_t i0 = task * P, m = std::min<int64_t>(P, n - i0);
    UnitRows<C> rows(buffer, D);
    for (int64_t r = 0; r < m; ++r) {
      const int64_t place = g * points_.group_stride + (i0 + r) * points_.row_stride;
      rows.set(r, offset_by(points_.x, points_.type, place), points_.type, D);
    }
    pack(packed_, i0, m, rows);
  }

  const Points& points_;
  T clip_;
  // Packed in whole panels. The rows past the end of the last panel are read, but never used.
  Packed<C> packed_;
  bool fresh_ = true;
};

template <class T>
class DistancePass {
  using V = Vec<T>;

 public:
  DistancePass(const Distances& f, Runtime* runtime, int threads)
      : f_(f),
        group_(f, runtime, threads, f.upstream, T(f.clip)),
        team_(runtime, int(std::min<int64_t>(threads, group_.blocks(f.rows))),
              (group_.scratch() + group_.block * f.D) * int64_t(sizeof(T))) {}

  static double work(const Distances& f) {
    return double(f.rows) * double(f.P) * double(f.D) * (f.upstream ? 3 : 2);
  }

  void run(int64_t g) {
    team_.run([&](Worker& worker) {
      group_.prepare(worker, g);
      worker.tasks(group_.blocks(f_.rows), [&](int64_t task) {
        const int64_t i0 = task * group_.block, m = std::min(group_.block, f_.rows - i0);
        T* d = worker.scratch<T>();
        group_.distances(i0, m, 0, f_.P, d);
        f_.upstream ? gradient(g, i0, m, d) : sums(g, i0, m, d);
      });
    });
  }

 private:
  void sums(int64_t g, int64_t i0, int64_t m, const T* d) const {
    const T* weight = f_.weight ? static_cast<const T*>(f_.weight) + g * f_.P : nullptr;
    for (int64_t r = 0; r < m; ++r, d += group_.ld) {
      V total(T(0));
      each<T>(0, f_.P, [&](int64_t, auto load) {
        const V x = load(d, T(0));
        total = weight ? fma(x, load(weight, T(0)), total) : total + x;
      });
      static_cast<T*>(f_.sums)[g * f_.rows + i0 + r] = sum(total);
    }
  }

  // 2 upstream sum_j (x_i - x_j) / d_ij.
  void gradient(int64_t g, int64_t i0, int64_t m, T* d) const {
    T* out = d + group_.scratch();
    for (int64_t i = 0; i < m * group_.ld; ++i) d[i] = d[i] == 0 ? T(0) : T(1) / d[i];
    group_.pulls(d, i0, m, -2 * static_cast<const T*>(f_.upstream)[g], out);
    for (int64_t r = 0; r < m; ++r)
      store_row(out + r * f_.D, f_.D, offset_by(f_.gradient, f_.type, (g * f_.P + i0 + r) * f_.D),
                f_.type);
  }

  const Distances& f_;
  Group<T> group_;
  Team team_;
};

}  // namespace fused_contrastive::FUSED_ISA
