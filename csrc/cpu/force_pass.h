// The force on every row: log-sum-exps of the scaled distances, sums of affinities, weights, and
// one weighted sum of the differences to the other points.
//
// Flops per group of P points, M of them rows: 3 D per pair and pass, one exp per pair, temperature
// and pass, and 3 M P D for the weighted sums. A pass for the mean distance or the log-sum-exps has
// P^2 pairs, one for sums or forces M P. Each task has complete rows, so that every maximum is
// known before its exponentials. Results have the same bits for any number of threads.
#pragma once

#include "force_distances.h"
#include "running_sum.h"

namespace fused_contrastive::FUSED_ISA {

// Half log-sum-exps in units of log 2, as an integer and the rest. Sums and differences of large
// ones then lose nothing.
template <class T>
struct Halves {
  T *whole, *rest;
  Halves(Runtime* runtime, int64_t n)
      : whole(allocate<T>(runtime, n)), rest(allocate<T>(runtime, n)) {}
  void set(int64_t i, double lse2) {
    const double half = lse2 / 2, integer = std::nearbyint(half);
    whole[i] = T(integer);
    rest[i] = std::isfinite(half) ? T(half - integer) : T(0);
  }
};

template <class T>
class ForcePass {
  using V = Vec<T>;

 public:
  ForcePass(const Force& f, Runtime* runtime, int threads)
      : f_(f),
        n_(f.P),
        lse_rows_(f.all_rows ? f.P : f.rows),
        group_(f, runtime, threads, true, T(f.clip)),
        team_(runtime, int(std::min<int64_t>(threads, group_.blocks(f.P))),
              (group_.scratch() + (group_.block + 1) * group_.ld) * int64_t(sizeof(T))),
        rows_(runtime, f.K * lse_rows_),
        columns_(f.all_rows ? rows_ : Halves<T>(runtime, f.K * f.P)),
        factors_(allocate<Factor<T>>(runtime, f.K)),
        raised_(allocate<T>(runtime, f.K * lse_rows_)),
        squares_(allocate<T>(runtime, f.rms ? 4 * f.K * f.P : 0)),
        totals_(allocate<double>(runtime, f.P)),
        tops_(allocate<double>(runtime, 2 * f.K * f.rows)),
        sums_(allocate<double>(runtime, 2 * f.K * f.rows)),
        apart_(allocate<double>(runtime, 2 * f.K * f.rows)),
        norms_(allocate<double>(runtime, f.K)) {}

  static double work(const Force& f) {
    return double(f.P) * double(f.P) * double(f.D + 8 * f.K) * 2;
  }

  void run(int64_t g) {
    team_.run([&](Worker& worker) { run(worker, g); });
  }

 private:
  // Calls f(row, its distances) for rows [0, rows), with distances to columns [first(i0), end) at
  // least.
  template <class First, class F>
  void each_row(Worker& worker, int64_t rows, First first, int64_t end, F f) {
    worker.tasks(group_.blocks(rows), [&](int64_t task) {
      const int64_t i0 = task * group_.block, m = std::min(group_.block, rows - i0);
      T* d = worker.scratch<T>();
      group_.distances(i0, m, first(i0), end, d);
      for (int64_t r = 0; r < m; ++r) f(i0 + r, d + r * group_.ld);
    });
  }

  void run(Worker& worker, int64_t g) {
    const auto all = [](int64_t) { return int64_t(0); };
    T* buffer = worker.scratch<T>() + group_.scratch();
    group_.prepare(worker, g);
    if (!f_.given_scale)
      each_row(worker, n_, all, n_, [&](int64_t i, const T* d) {
        V total(T(0));
        each<T>(0, n_, [&](int64_t, auto load) { total = total + load(d, T(0)); });
        totals_[i] = sum(total);
      });
    worker.tasks(1, [&](int64_t) { scale(g); });
    each_row(worker, lse_rows_, all, n_, [&](int64_t i, const T* d) {
      log_sums(g, i, n_, d, buffer, rows_, lse_rows_, raised_, static_cast<T*>(f_.lse_rows));
    });
    if (!f_.all_rows)
      each_row(worker, n_, all, f_.rows, [&](int64_t i, const T* d) {
        log_sums(g, i, f_.rows, d, buffer, columns_, n_, nullptr, static_cast<T*>(f_.lse_cols));
      });
    const auto first = [&](int64_t i0) { return i0 < f_.rows ? 0 : f_.rows; };
    each_row(worker, f_.rms ? n_ : f_.rows, first, n_,
             [&](int64_t i, const T* d) { sums(g, i, d, buffer); });
    worker.tasks(1, [&](int64_t) { norms(g); });
    forces(worker, g, buffer);
  }

  void scale(int64_t g) {
    T& scale = static_cast<T*>(f_.scale)[g];
    if (f_.given_scale) {
      scale = static_cast<const T*>(f_.given_scale)[g];
    } else {
      double total = 0;
      for (int64_t i = 0; i < n_; ++i) total += totals_[i];
      scale = T(total / (double(n_) * double(n_)));
    }
    for (int64_t k = 0; k < f_.K; ++k) {
      const double inverse = static_cast<const T*>(f_.inverse_temperatures)[k];
      factors_[k] = Factor<T>(-LOG2_E * (scale == 0 ? inverse : inverse / double(scale)));
    }
  }

  // Computes log sum_j exp(-f d_ij) over the first `end` points, for every temperature. `raised`
  // receives by how many powers of two the row's affinities are computed too large. Those that
  // count are then near 1, and their exponents lose least.
  void log_sums(int64_t g, int64_t i, int64_t end, const T* d, T* a, Halves<T>& halves,
                int64_t size, T* raised, T* out) {
    for (int64_t k = 0; k < f_.K; ++k) {
      const V high(factors_[k].high), low(factors_[k].low);
      each<T>(0, end, [&](int64_t j, auto load) {
        const V x = load(d, T(0));
        fma(x, high, x * low).store(a + j);
      });
      if (f_.mask && i < end) a[i] = NONE<T>;
      const T top = maximum_over(a, 0, end);
      const V shift(finite(top));
      V total(T(0));
      each<T>(0, end, [&](int64_t, auto load) { total = total + exp2(load(a, NONE<T>) - shift); });
      const double lse2 = double(finite(top)) + std::log2(double(sum(total)));
      halves.set(k * size + i, lse2);
      if (raised)
        raised[k * size + i] = std::isfinite(lse2) ? T(std::nearbyint(lse2 - double(top))) : T(0);
      out[(k * f_.G + g) * size + i] = T(lse2 * LN_2);
    }
  }

  // log2 A of row i at temperature k, raised.
  void log_affinity(int64_t i, int64_t k, const T* d, T* a) const {
    const T up = raised_[k * lse_rows_ + i];
    const V high(factors_[k].high), low(factors_[k].low), floor(T(f_.floor * LOG2_E) + up);
    const V whole(up - rows_.whole[k * lse_rows_ + i]), rest(-rows_.rest[k * lse_rows_ + i]);
    const T *columns = columns_.whole + k * n_, *columns_rest = columns_.rest + k * n_;
    if (f_.denominator > NONE<double>) {
      const V bound(T(f_.denominator * LOG2_E / 2) - up), zero(T(0));
      each<T>(0, n_, [&](int64_t j, auto load) {
        const V x = load(d, T(0));
        const V half =
            maximum(bound, load(columns, T(0)) - whole + (load(columns_rest, T(0)) - rest));
        maximum(floor, fma(x, high, fma(x, low, zero - half))).store(a + j);
      });
    } else {
      each<T>(0, n_, [&](int64_t j, auto load) {
        const V x = load(d, T(0));
        const V near = fma(x, high, whole - load(columns, T(0)));
        maximum(floor, fma(x, low, near + (rest - load(columns_rest, T(0))))).store(a + j);
      });
    }
    a[i] = T(f_.self_logit * LOG2_E) + up;
  }

  // Computes the sides' shifts and sums of row i, and its sums of (d A)^2. Points that are no rows
  // give only the latter, over the columns after the rows: the pairs before those are mirrored.
  void sums(int64_t g, int64_t i, const T* d, T* a) {
    const T* weight = f_.weight ? static_cast<const T*>(f_.weight) + g * n_ : nullptr;
    const bool equal = has_equal(i, d);
    for (int64_t k = 0; k < f_.K; ++k) {
      log_affinity(i, k, d, a);
      if (f_.rms && i >= f_.rows) squares(k, 0)[i] = NONE<T>, squares(k, 0)[n_ + i] = 0;
      for (int side = i < f_.rows ? 0 : 1; side < 2; ++side) {
        const int64_t begin = side == 0 ? 0 : f_.negatives, end = side == 0 ? f_.negatives : n_;
        T top = maximum_over(a, begin, end);
        const V shift(finite(top));
        double total = 0;
        V square(T(0));
        // Short sums lose little.
        for (int64_t j0 = begin; j0 < end; j0 += 8 * V::W) {
          V part(T(0));
          each<T>(j0, std::min(end, j0 + 8 * V::W), [&](int64_t, auto load) {
            const V e = exp2(load(a, NONE<T>) - shift), de = load(d, T(0)) * e;
            part = weight ? fma(e, load(weight, T(0)), part) : part + e;
            square = fma(de, de, square);
          });
          total += double(sum(part));
        }
        if (total != total) top = T(total);
        if (i < f_.rows) {
          const int64_t place = ((side * f_.K + k) * f_.G + g) * f_.rows + i;
          const double lowered = double(top) - double(raised_[k * lse_rows_ + i]);
          static_cast<T*>(f_.shift)[place] = T(lowered * LN_2);
          static_cast<T*>(f_.sums)[place] = T(total);
          sums_[(side * f_.K + k) * f_.rows + i] = total;
          apart_[(side * f_.K + k) * f_.rows + i] = lowered;
          tops_[(side * f_.K + k) * f_.rows + i] = lowered;
        }
        if (equal) top = less_equal(d, a, begin, end, square);
        if (equal && i < f_.rows)
          apart_[(side * f_.K + k) * f_.rows + i] =
              top == NONE<T> ? NONE<double> : double(top) - double(raised_[k * lse_rows_ + i]);
        if (!f_.rms) continue;
        squares(k, side)[i] = top;
        squares(k, side)[n_ + i] = sum(square);
      }
    }
  }
  T* squares(int64_t k, int side) const { return squares_ + (2 * k + side) * 2 * n_; }

  // Whether a point other than row i equals it.
  bool has_equal(int64_t i, const T* d) const {
    int64_t zeros = 0;
    for (int64_t j = i < f_.rows ? 0 : f_.rows; j < n_; ++j) zeros += d[j] == 0;
    return zeros > 1;
  }

  // Serves rows whose largest affinity is that of equal points, at distance 0. It takes the sum of
  // (d A)^2 relative to the largest affinity of the other points, and returns that.
  T less_equal(const T* d, T* a, int64_t begin, int64_t end, V& square) const {
    for (int64_t j = begin; j < end; ++j) a[j] = d[j] == 0 ? NONE<T> : a[j];
    const T top = maximum_over(a, begin, end);
    const V shift(finite(top));
    square = V(T(0));
    each<T>(begin, end, [&](int64_t, auto load) {
      const V de = load(d, T(0)) * exp2(load(a, NONE<T>) - shift);
      square = fma(de, de, square);
    });
    return top;
  }

  // log2 of the sum of (d A)^2 over all pairs.
  double log2_squares(int64_t k) const {
    const T* raised = raised_ + k * lse_rows_;
    T top = NONE<T>;
    for (int side = 0; side < 2; ++side)
      for (int64_t i = 0; i < n_; ++i) top = std::max(top, squares(k, side)[i] - raised[i]);
    top = std::nearbyint(finite(top));
    V total(T(0));
    for (int side = 0; side < 2; ++side) {
      const T *tops = squares(k, side), *sums = tops + n_;
      each<T>(0, n_, [&](int64_t j, auto load) {
        const V excess = load(tops, NONE<T>) - (load(raised, T(0)) + V(top));
        const V part = load(sums, T(0)) * exp2(excess + excess);
        total = total + part;
        if (side == 1 && j < f_.rows) total = total + mirrored(part, f_.rows - j);
      });
    }
    return 2 * double(top) + std::log2(double(sum(total)));
  }
  static V mirrored(V part, int64_t rows) {
    T x[V::W];
    part.store(x);
    return partial(x, rows, T(0));
  }

  void norms(int64_t g) {
    for (int64_t k = 0; k < f_.K; ++k) {
      double& norm = norms_[k];  // in units of log 2
      norm = 0;
      if (f_.rms) {
        norm = log2_squares(k) / 2 - std::log2(double(n_));
        const T scale = static_cast<const T*>(f_.scale)[g];
        if (scale != 0) norm -= std::log2(std::fabs(double(scale)));
      } else if (f_.separate) {
        double top = NONE<double>;
        for (int64_t i = 0; i < f_.rows; ++i) top = std::max(top, row_top(i, k));
        norm = top == NONE<double> ? 0 : top;
      }
      T& out = static_cast<T*>(f_.log_norm)[k * f_.G + g];
      out = T(norm * LN_2);
      if (!f_.rms) norm = double(out) * LOG2_E;  // Callers multiply by its exponential.
    }
  }
  // The largest power of two of a weight in the force on row i: the sum of one side with the
  // largest affinity of the other.
  double row_top(int64_t i, int64_t k) const {
    const int64_t near = k * f_.rows + i, far = (f_.K + k) * f_.rows + i;
    return std::max(tops_[near] + apart_[far], tops_[far] + apart_[near]);
  }

  void forces(Worker& worker, int64_t g, T* buffer) {
    worker.tasks(group_.blocks(f_.rows), [&](int64_t task) {
      const int64_t i0 = task * group_.block, m = std::min(group_.block, f_.rows - i0);
      T *d = worker.scratch<T>(), *w = buffer + group_.ld;
      group_.distances(i0, m, 0, n_, d);
      for (int64_t k0 = 0; k0 < f_.K; k0 = f_.separate ? k0 + 1 : f_.K) {
        for (int64_t r = 0; r < m; ++r)
          weights(g, i0 + r, k0, f_.separate ? k0 + 1 : f_.K, d + r * group_.ld, buffer,
                  w + r * group_.ld);
        group_.pulls(w, i0, m, T(1),
                     static_cast<T*>(f_.force) + ((k0 * f_.G + g) * f_.rows + i0) * f_.D);
      }
    });
  }

  // w receives the weights of the points in the force on row i: over the temperatures, +-unit s of
  // the other side times E. The weights' sum is 0 far below the rounding of one weight. So the
  // force is the same from wherever the points are seen.
  void weights(int64_t g, int64_t i, int64_t k0, int64_t k1, const T* d, T* a, T* w) const {
    const bool equal = has_equal(i, d);
    std::fill(w, w + n_, T(0));
    for (int64_t k = k0; k < k1; ++k) {
      if (norms_[k] == NONE<double>) continue;
      log_affinity(i, k, d, a);
      for (int side = 0; side < 2; ++side) {
        const int64_t begin = side == 0 ? 0 : f_.negatives, end = side == 0 ? f_.negatives : n_;
        const int64_t other = ((1 - side) * f_.K + k) * f_.rows + i;
        const double top = apart_[(side * f_.K + k) * f_.rows + i];
        if (tops_[other] == NONE<double> || top == NONE<double>) continue;
        if (equal)
          for (int64_t j = begin; j < end; ++j) a[j] = d[j] == 0 ? NONE<T> : a[j];
        const double unit = sums_[other] * std::exp2(tops_[other] + top - norms_[k]);
        const Factor<T> factor(side == 0 ? -unit : unit);
        const V high(factor.high), low(factor.low),
            shift(T(top + double(raised_[k * lse_rows_ + i])));
        int64_t j = begin;
        for (; j + V::W <= end; j += V::W) {
          const V e = exp2(V::load(a + j) - shift);
          fma(e, high, fma(e, low, V::load(w + j))).store(w + j);
        }
        if (j < end) {
          T rest[V::W];
          const V e = exp2(partial(a + j, end - j, NONE<T>) - shift);
          fma(e, high, fma(e, low, partial(w + j, end - j, T(0)))).store(rest);
          std::copy_n(rest, end - j, w + j);
        }
      }
    }
    if (f_.weight) {
      const T* weight = static_cast<const T*>(f_.weight) + g * n_;
      for (int64_t j = 0; j < n_; ++j) w[j] *= weight[j];
    }
  }

  const Force& f_;
  const int64_t n_, lse_rows_;  // points; rows of lse_rows
  Group<T> group_;
  Team team_;
  Halves<T> rows_, columns_;
  Factor<T>* factors_;
  T* raised_;             // [K, rows of lse_rows]
  T* squares_;            // [K, side, maximum or sum, P]
  double* totals_;        // [P]
  double *tops_, *sums_;  // [side, K, rows]
  double* apart_;         // like tops_, over the points that do not equal the row
  double* norms_;         // [K]
};

}  // namespace fused_contrastive::FUSED_ISA
