// Backward: W_ij = g_i exp(s_ij - rows_i) + h_j exp(s_ij - cols_j), with the sigmoid factors of the loss in g and h;
// G_a = W b, G_b = W^T a (one set: W + W^T is symmetric, G = (W + W^T) z), then the positives, the scale and the
// Jacobian of the normalisation, row by row.
//
// Flops: 3 N^2 D for one set (half the logits again, each tile of weights used twice), 2 M N D (1 + [G_a] + [G_b]) for
// two. Bytes: a tile of B x B reads four blocks of B D and updates two; gradients are updated in place. Schedule:
// team.h. One exp per element: w = 2^(t - c) (u_i + v_j) with u_i = g_i 2^(c - rows_i), v_j = h_j 2^(c - cols_j) for
// one c where the log-sum-exps lie within 2^+-SPREAD of each other, else within a tile; where they do not, two exps.
// Shifts are integral and the rest of a log-sum-exp is a factor of its weight: no rounding grows with the logits.
#pragma once

#include "forward.h"

namespace fused_contrastive::FUSED_ISA {

// The vectors of one side: 2^-level weight = coefficient exp(-lse) with an integral level near lse / log 2 (0 where there
// are no candidates); scaled = 2^(c - level) weight where one exp serves all.
template <class T>
struct Weights {
  T *coefficient = nullptr, *weight = nullptr, *level = nullptr, *scaled = nullptr;
};

// The range of the levels that have a weight, and `bound`, which no logit exceeds by more than 1: the largest of all rows.
template <class T>
struct Range {
  static constexpr double SPREAD = sizeof(T) == 8 ? 1000 : 100;
  double low = std::numeric_limits<double>::infinity(), high = -low, bound = -low;
  bool finite = true;

  void include(double level, T weight, bool row) {
    finite = finite && std::isfinite(level) && std::isfinite(weight);
    if (weight != 0) low = std::min(low, level), high = std::max(high, level);
    if (row) bound = std::max(bound, level);
  }
  // The middle of the range, where one exp serves all: it neither overflows nor loses a weight that matters.
  double center() const { return low <= high ? std::rint(0.5 * (low + high)) : std::isfinite(bound) ? bound : 0; }
  bool narrow() const { return finite && !(high - low > SPREAD) && !(bound - center() > SPREAD); }
};

template <class C>
class BackwardPass {
  using T = typename C::T;
  using V = Vec<T>;
  static constexpr int P = PANEL<T>, W = V::W;

 public:
  BackwardPass(const Backward& f, Runtime* runtime, int threads)
      : f_(f),
        M_(f.a.n),
        N_(f.b.n),
        D_(f.D),
        size_(block_size(M_, N_, f.D, f.one_set)),
        need_a_(f.a.gradient || (f.need_scale && !(f.b.gradient && !f.one_set))),
        need_b_(!f.one_set && f.b.gradient),
        tiles_(!(f.mean && !need_b_ && !f.dbias)),
        grid_(M_, N_, size_, need_a_, need_b_ || f.dbias),
        team_(runtime, int(std::min<int64_t>(threads, f.one_set ? (grid_.row_blocks() + 1) / 2 : grid_.width())),
              TileScratch<C>::bytes(size_, D_) + 2 * int64_t(sizeof(T)) * D_),
        row_turns_(grid_.row_blocks() * grid_.column_parts),
        column_turns_(grid_.column_blocks() * grid_.row_parts),
        factor_(f.scale * LOG2_E),
        a_(runtime, M_, D_, tiles_, tiles_ && (need_b_ || f.one_set), !f.one_set),
        b_(runtime, N_, D_, tiles_ && !f.one_set, tiles_ && need_a_ && !f.one_set, false) {
    const bool one = f.one_set;
    if (need_a_ && tiles_ && (f.a.type != TYPE<T> || !f.a.gradient || (!one && grid_.column_parts > 1)))
      G_a_ = allocate<T>(runtime, (one ? 1 : grid_.column_parts) * M_ * D_);
    if (need_b_ && (f.b.type != TYPE<T> || grid_.row_parts > 1)) G_b_ = allocate<T>(runtime, grid_.row_parts * N_ * D_);
    add_ = allocate<T>(runtime, N_ + P);
    rows_ = weights(runtime, M_);
    if (one)
      columns_ = rows_;
    else if (f.cols)
      columns_ = weights(runtime, N_);
    row_ = allocate<double>(runtime, M_);
    if (f.cols) column_ = allocate<double>(runtime, N_);
    if (f.positive >= 0) positive_ = allocate<double>(runtime, M_);
    if (f.dbias) bias_ = allocate<double>(runtime, grid_.row_parts * N_);
    dots_ = allocate<double>(runtime, std::max(M_, N_));
  }

  static double work(const Backward& f) { return double(f.a.n) * double(f.b.n) * double(f.D) * (f.one_set ? 1.5 : 2); }

  void run(int64_t g) {
    row_turns_.reset();
    column_turns_.reset();
    team_.run([&](Worker& worker) { run(worker, g); });
  }

 private:
  void run(Worker& worker, int64_t g) {
    const int64_t panels_a = tiles_ ? a_.panels() : 0, panels_b = tiles_ && !f_.one_set ? b_.panels() : 0;
    worker.tasks(1 + panels_a + panels_b, [&](int64_t task) {
      if (task == 0)
        coefficients(g);
      else if (task <= panels_a)
        repack(worker, f_.a, g, f_.matrix, a_, task - 1);
      else
        repack(worker, f_.b, g, f_.matrix, b_, task - 1 - panels_a);
    });
    const auto in_place = [&](const Set& set) {
      return set.gradient && set.type == TYPE<T> ? static_cast<T*>(set.gradient) + g * set.n * D_ : nullptr;
    };
    T *G_a = G_a_ ? G_a_ : in_place(f_.a), *G_b = G_b_ ? G_b_ : in_place(f_.b);
    if (tiles_) all_tiles(worker, g, G_a, G_b);
    if (need_a_) finish(worker, g, f_.a, G_a, grid_.column_parts, true);
    if (need_b_) finish(worker, g, f_.b, G_b, grid_.row_parts, false);
    if (f_.dbias || f_.need_scale) worker.tasks(1, [&](int64_t) { finish_sums(g); });
  }

  static Weights<T> weights(Runtime* runtime, int64_t n) {
    Weights<T> w;
    for (T** p : {&w.coefficient, &w.weight, &w.level, &w.scaled}) *p = allocate<T>(runtime, n + P);
    return w;
  }

  // Coefficients of rows, columns and positives from the upstream gradients, times a power of two that brings the
  // largest near 1.
  void coefficients(int64_t g) {
    const auto at = [&](const void* p, int64_t i, int64_t n) {
      return p ? double(static_cast<const T*>(p)[g * n + i]) : 0.0;
    };
    const auto excess = [&](const void* lse, int64_t i, int64_t n, double pos) {
      return at(lse, i, n) - pos + at(lse, f_.G * n + i, n);
    };
    const auto sigmoid = [](double x) { return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); };
    for (int64_t i = 0; i < M_; ++i) row_[i] = at(f_.g_rows, i, M_);
    for (int64_t j = 0; column_ && j < N_; ++j) column_[j] = at(f_.g_cols, j, N_);
    for (int64_t i = 0; f_.positive >= 0 && i < M_; ++i) {
      const double upstream = row_[i] * (f_.cols ? 0.5 : 1), pos = at(f_.pos, i, M_);
      row_[i] = upstream * sigmoid(excess(f_.rows, i, M_, pos)) + undefined(at(f_.rows, i, M_), pos);
      positive_[i] = -row_[i];
      if (!f_.cols) continue;
      const int64_t j = (i + f_.positive) % N_;
      const double h = upstream * sigmoid(excess(f_.cols, j, N_, pos)) + undefined(at(f_.cols, j, N_), pos);
      column_[j] += h;
      positive_[i] -= h;
    }
    double largest = 0;
    const auto widen = [&](const double* x, int64_t n) {
      for (int64_t i = 0; x && i < n; ++i)
        if (std::isfinite(x[i])) largest = std::max(largest, std::fabs(x[i]));
    };
    widen(row_, M_);
    widen(column_, N_);
    const int exponent = largest > 0 ? std::ilogb(largest) : 0;
    upstream_scale_ = std::ldexp(1.0, exponent);
    const double inverse = std::ldexp(1.0, -exponent);

    const auto fill = [&](Weights<T>& w, const double* x, const void* lse, int64_t n, Range<T>& range, bool bounds) {
      for (int64_t i = 0; i < n; ++i) {
        const double x0 = at(lse, i, n), y = x0 * LOG2_E;
        const bool empty = std::isinf(y) && y < 0;
        const double level = empty ? 0 : double(T(std::rint(y)));
        w.level[i] = T(level);
        w.coefficient[i] = empty && x[i] == x[i] ? T(0) : T(x[i] * inverse);
        const double rest = std::fma(x0, LOG2_E, -level) + x0 * LOG2_E_LOW + at(lse, f_.G * n + i, n) * LOG2_E;
        w.weight[i] = std::isfinite(y) ? T(x[i] * inverse * std::exp2(-rest)) : w.coefficient[i];
        if (!empty || x[i] != x[i]) range.include(level, w.weight[i], bounds);
      }
      for (int64_t i = n; i < n + P; ++i) w.level[i] = w.weight[i] = w.coefficient[i] = w.scaled[i] = 0;
    };
    Range<T> range;
    fill(rows_, row_, f_.rows, M_, range, true);
    if (f_.cols) fill(columns_, column_, f_.cols, N_, range, false);
    for (int64_t i = 0; positive_ && i < M_; ++i) positive_[i] *= inverse;
    if (bias_) std::fill_n(bias_, grid_.row_parts * N_, 0.0);
    common_ = range.narrow();
    additive<T>(f_, g, N_ + P, add_);
    if (!common_) return;
    center_ = range.center();
    scale_weights(rows_, 0, M_, center_, rows_.scaled);
    if (f_.cols) scale_weights(columns_, 0, N_, center_, columns_.scaled);
  }

  static void scale_weights(const Weights<T>& w, int64_t begin, int64_t end, double center, T* out) {
    for (int64_t i = begin; i < end; ++i)
      out[i - begin] = w.weight[i] == 0 ? T(0) : T(w.weight[i] * power_of_two(center - w.level[i]));
  }

  void all_tiles(Worker& worker, int64_t g, T* G_a, T* G_b) {
    const Candidates<T> candidates(f_, g);
    const TileScratch<C> s(worker.scratch<T>(), size_);
    if (f_.one_set) {
      tournament(worker, row_turns_, M_, size_, [&](const Block& I, const Block& J) {
        weigh(s, a_, candidates, I, J, nullptr);
        add_rows(s, size_, I, J, a_, G_a + I.begin * D_, !I.first);
        if (I.index != J.index) add_columns(s, size_, I, J, a_, G_a + J.begin * D_, true);
      });
      return;
    }
    grid_tiles(worker, row_turns_, column_turns_, grid_, [&](const Block& I, const Block& J, int64_t r, int64_t c) {
      weigh(s, b_, candidates, I, J, bias_ ? bias_ + r * N_ : nullptr);
      if (need_a_) add_rows(s, size_, I, J, b_, G_a + (c * M_ + I.begin) * D_, !I.first);
      if (need_b_) add_columns(s, size_, I, J, a_, G_b + (r * N_ + J.begin) * D_, !J.first);
    });
  }

  // The tile of weights into `s`, and their column sums into `bias`.
  void weigh(const TileScratch<C>& s, const Packed<C>& b, const Candidates<T>& candidates, const Block& I,
             const Block& J, double* bias) const {
    const T *u = rows_.scaled + I.begin, *v = columns_.scaled ? columns_.scaled + J.begin : s.v;
    double center = center_;
    bool one_exp = common_;
    if (!common_) {
      Range<T> range;
      for (int64_t i = I.begin; i < I.end; ++i) range.include(rows_.level[i], rows_.weight[i], true);
      if (columns_.level)
        for (int64_t j = J.begin; j < J.end; ++j) range.include(columns_.level[j], columns_.weight[j], false);
      one_exp = range.narrow();
      if (one_exp) {
        center = range.center();
        scale_weights(rows_, I.begin, I.end, center, s.u);
        std::fill_n(s.v, size_, T(0));
        if (columns_.level) scale_weights(columns_, J.begin, J.end, center, s.v);
        u = s.u, v = s.v;
      }
    } else if (!columns_.scaled) {
      std::fill_n(s.v, size_, T(0));
    }
    if (bias) std::fill_n(s.column_sums, size_, T(0));
    const V shift{T(center)};
    const auto visit = [&](int64_t i, int64_t m, int64_t j, const T* t, int64_t ld, auto count) {
      constexpr int NR = count();
      const auto two_rows = [&](int64_t r, bool second) {
#pragma GCC unroll 4
        for (int c = 0; c < NR; ++c) {
          const int64_t k = j + c * W;
          const auto weight = [&](int64_t row) {
            const V x = V::load(t + row * ld + c * W);
            if (one_exp) return exp2(x - shift) * (V(u[i + row]) + V::load(v + k));
            const int64_t p = I.begin + i + row;
            V w = V(rows_.weight[p]) * exp2(x - V(rows_.level[p]));
            if (columns_.level)
              w = fma(V::load(columns_.weight + J.begin + k), exp2(x - V::load(columns_.level + J.begin + k)), w);
            return w;
          };
          const V x = weight(r), y = second ? weight(r + 1) : V(T(0));
          store_weights<C>(s, size_, i + r, k, x, y, second);
          if (bias) (V::load(s.column_sums + k) + (x + y)).store(s.column_sums + k);
        }
      };
      if (m == MR)
        for (int64_t r = 0; r < MR; r += 2) two_rows(r, true);
      else
        for (int64_t r = 0; r < m; r += 2) two_rows(r, r + 1 < m);
    };
    logits_tile(a_, b, I, J, factor_, add_ + J.begin, candidates, s.block, P, false, false, visit);
    if (bias)
      for (int64_t j = 0; j < J.size(); ++j) bias[J.begin + j] += s.column_sums[j];
  }

  // Adds up the parts and the positives of every row, then applies scale and the normalisation's Jacobian.
  void finish(Worker& worker, int64_t g, const Set& set, T* G, int64_t parts, bool left) {
    const int64_t n = set.n;
    const bool dots = f_.need_scale && (left || !need_a_);
    const T* mean = left && !tiles_ ? static_cast<const T*>(f_.mean) + g * n * D_ : nullptr;
    if (f_.one_set) parts = 1;
    worker.tasks((n + P - 1) / P, [&](int64_t task) {
      T *buffer = worker.scratch<T>(), *x = buffer + D_;
      for (int64_t i = task * P; i < std::min(n, (task + 1) * P); ++i) {
        T* row = G ? G + i * D_ : x;
        if (mean)
          for (int64_t d = 0; d < D_; ++d)
            row[d] = rows_.coefficient[i] == 0 ? T(0) : rows_.coefficient[i] * mean[i * D_ + d];
        for (int64_t part = 1; part < (mean ? 0 : parts); ++part)
          for (int64_t d = 0; d < D_; ++d) row[d] += G[(part * n + i) * D_ + d];
        if (positive_) add_positives(g, i, left, row, buffer);
        const T* z = rounded_row(set, g, i, D_, f_.matrix, buffer);
        const T inner = set.inv || dots ? dot(z, row, D_) : T(0);
        if (dots) dots_[i] = inner;
        if (!set.gradient) continue;
        T factor = T(f_.scale * upstream_scale_);
        if (set.inv) {
          const T inv = static_cast<const T*>(set.inv)[g * n + i];
          factor *= inv;
          if (!(inv >= T(1 / NORM_FLOOR))) {  // the direction of x, not that of the rounded z
            const bool exact = f_.matrix == TYPE<T>;
            const T* u = exact ? z : row_in(input(set, g, i), set.type, D_, buffer);
            const T radial = exact ? inner : inv * inv * dot(u, row, D_);
            for (int64_t d = 0; d < D_; ++d) row[d] -= radial * u[d];
          }
        }
        for (int64_t d = 0; d < D_; ++d) row[d] *= factor;
        void* out = offset_by(set.gradient, set.type, (g * n + i) * D_);
        if (out != row) store_row(row, D_, out, set.type);
      }
    });
  }

  // Row i's own positive and, for columns, the rows whose positive is i.
  void add_positives(int64_t g, int64_t i, bool left, T* row, T* buffer) const {
    const auto add = [&](const Set& set, int64_t j, T weight) {
      const T* z = rounded_row(set, g, j, D_, f_.matrix, buffer);
      for (int64_t d = 0; d < D_; ++d) row[d] += weight * z[d];
    };
    if (left) add(f_.b, (i + f_.positive) % N_, T(positive_[i]));
    if (!left || f_.one_set)
      for (int64_t k = Candidates<T>::floor_mod(i - f_.positive, N_); k < M_; k += N_) add(f_.a, k, T(positive_[k]));
  }

  void finish_sums(int64_t g) {
    if (f_.need_scale) {
      double total = 0;
      for (int64_t i = 0; i < (need_a_ ? M_ : N_); ++i) total += dots_[i];
      f_.dscale[g] = total * upstream_scale_ * (f_.one_set ? 0.5 : 1);
    }
    if (!f_.dbias) return;
    T* out = static_cast<T*>(f_.dbias) + g * N_;
    for (int64_t r = 1; r < grid_.row_parts; ++r)
      for (int64_t j = 0; j < N_; ++j) bias_[j] += bias_[r * N_ + j];
    if (positive_)
      for (int64_t i = 0; i < M_; ++i) bias_[(i + f_.positive) % N_] += positive_[i];
    for (int64_t j = 0; j < N_; ++j) out[j] = T(bias_[j] * upstream_scale_);
  }

  const Backward& f_;
  int64_t M_, N_, D_, size_;
  bool need_a_, need_b_, tiles_;
  Grid grid_;
  Team team_;
  Turns row_turns_, column_turns_;
  Factor<T> factor_;
  Packed<C> a_, b_;
  Weights<T> rows_, columns_;
  double upstream_scale_ = 1, center_ = 0;
  bool common_ = false;
  T *G_a_ = nullptr, *G_b_ = nullptr, *add_ = nullptr;
  double *row_ = nullptr, *column_ = nullptr, *positive_ = nullptr, *bias_ = nullptr, *dots_ = nullptr;
};

}  // namespace fused_contrastive::FUSED_ISA
