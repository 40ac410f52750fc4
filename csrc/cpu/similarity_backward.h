// The backward pass of the similarity family. W_ij = g_i exp(s_ij - rows_i) + h_j exp(s_ij -
// cols_j), where the sigmoid factors of the loss are part of g and h. G_a = W b and G_b = W^T a;
// for one set W + W^T is symmetric and G = (W + W^T) z. For flops, bytes and what follows see
// gradient_pass.h.
//
// One exp per element is enough where the log-sum-exps lie within 2^+-SPREAD of each other, in the
// group or at least in a tile. Then w = 2^(t - c) (u_i + v_j) with u_i = g_i 2^(c - rows_i), v_j =
// h_j 2^(c - cols_j) for one c. Elsewhere it takes two exps. Shifts are integral, and the rest of a
// log-sum-exp is a factor of its weight. So no rounding grows with the logits.
#pragma once

#include "gradient_pass.h"
#include "running_sum.h"
#include "similarity.h"

namespace fused_contrastive::FUSED_ISA {

// The vectors of one side: 2^-level weight = coefficient exp(-lse), with an integral level near lse
// / log 2 (0 where there are no candidates). Where one exp serves all, scaled = 2^(c - level)
// weight.
template <class T>
struct Weights {
  T *coefficient = nullptr, *weight = nullptr, *level = nullptr, *scaled = nullptr;
};

// The range of the levels that have a weight. `bound` is the largest level of all rows, which no
// logit exceeds by more than 1.
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
  // The middle of the range, where one exp serves all: it neither overflows nor loses a weight that
  // matters.
  double center() const {
    return low <= high ? std::rint(0.5 * (low + high)) : std::isfinite(bound) ? bound : 0;
  }
  bool narrow() const { return finite && !(high - low > SPREAD) && !(bound - center() > SPREAD); }
};

template <class C>
class SimilarityBackwardPass
    : public GradientPass<SimilarityBackwardPass<C>, C, SimilarityBackward> {
  using Base = GradientPass<SimilarityBackwardPass<C>, C, SimilarityBackward>;
  friend Base;
  using Base::a_, Base::add_, Base::D_, Base::f_, Base::factor_, Base::grid_, Base::M_, Base::N_,
      Base::P, Base::positive_, Base::size_, Base::tiles_, Base::upstream_scale_, Base::W;
  using typename Base::T;
  using typename Base::V;

 public:
  SimilarityBackwardPass(const SimilarityBackward& f, Runtime* runtime, int threads)
      : Base(f, runtime, threads, f.scale, !f.mean || (f.b.gradient && !f.one_set) || f.dbias,
             false, f.dbias) {
    rows_ = weights(runtime, M_);
    if (f.one_set)
      columns_ = rows_;
    else if (f.cols)
      columns_ = weights(runtime, N_);
    row_ = allocate<double>(runtime, M_);
    if (f.cols) column_ = allocate<double>(runtime, N_);
    if (f.dbias) bias_ = allocate<double>(runtime, grid_.row_parts * N_);
  }

 private:
  static Weights<T> weights(Runtime* runtime, int64_t n) {
    Weights<T> w;
    for (T** p : {&w.coefficient, &w.weight, &w.level, &w.scaled}) *p = allocate<T>(runtime, n + P);
    return w;
  }

  // Computes the coefficients of rows, columns and positives from the upstream gradients, times a
  // power of two that brings the largest near 1.
  void coefficients(int64_t g) {
    const auto at = [&](const void* p, int64_t i, int64_t n) {
      return p ? double(static_cast<const T*>(p)[g * n + i]) : 0.0;
    };
    const auto excess = [&](const void* lse, int64_t i, int64_t n, double pos) {
      return at(lse, i, n) - pos + at(lse, f_.G * n + i, n);
    };
    for (int64_t i = 0; i < M_; ++i) row_[i] = at(f_.g_rows, i, M_);
    for (int64_t j = 0; column_ && j < N_; ++j) column_[j] = at(f_.g_cols, j, N_);
    for (int64_t i = 0; f_.positive >= 0 && i < M_; ++i) {
      const double upstream = row_[i] * (f_.cols ? 0.5 : 1), pos = at(f_.pos, i, M_);
      row_[i] =
          upstream * logistic(excess(f_.rows, i, M_, pos)) + undefined(at(f_.rows, i, M_), pos);
      positive_[i] = -row_[i];
      if (!f_.cols) continue;
      const int64_t j = (i + f_.positive) % N_;
      const double h =
          upstream * logistic(excess(f_.cols, j, N_, pos)) + undefined(at(f_.cols, j, N_), pos);
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
    upstream_scale_ = this->power_near(largest);
    const double inverse = 1 / upstream_scale_;

    const auto fill = [&](Weights<T>& w, const double* x, const void* lse, int64_t n,
                          Range<T>& range, bool bounds) {
      for (int64_t i = 0; i < n; ++i) {
        // Of large logits the second part of a log-sum-exp matters for its level, too.
        const double x0 = at(lse, i, n), x1 = at(lse, f_.G * n + i, n);
        const double y = std::fma(x0, LOG2_E, std::isfinite(x0) ? x1 * LOG2_E : 0.0);
        const bool empty = std::isinf(y) && y < 0;
        const double level = empty ? 0 : double(T(std::rint(y)));
        w.level[i] = T(level);
        w.coefficient[i] = empty && x[i] == x[i] ? T(0) : T(x[i] * inverse);
        // Beyond 2^44 two floats no longer hold how far a log-sum-exp is from its largest logit.
        const double rest =
            std::fabs(y) < 0x1p44 || sizeof(T) == 8
                ? std::fma(x0, LOG2_E, -level) + x0 * LOG2_E_LOW + x1 * LOG2_E
                : 0;
        w.weight[i] = std::isfinite(y) ? T(x[i] * inverse * std::exp2(-rest)) : w.coefficient[i];
        if (!empty || x[i] != x[i]) range.include(level, w.weight[i], bounds);
      }
      for (int64_t i = n; i < n + P; ++i)
        w.level[i] = w.weight[i] = w.coefficient[i] = w.scaled[i] = 0;
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

  static void scale_weights(const Weights<T>& w, int64_t begin, int64_t end, double center,
                            T* out) {
    for (int64_t i = begin; i < end; ++i)
      out[i - begin] = w.weight[i] == 0 ? T(0) : T(w.weight[i] * power_of_two(center - w.level[i]));
  }

  bool fill_row(int64_t g, int64_t i, T* row) const {
    if (tiles_) return false;
    const T *mean = static_cast<const T*>(f_.mean) + (g * M_ + i) * D_, c = rows_.coefficient[i];
    for (int64_t d = 0; d < D_; ++d) row[d] = c == 0 ? T(0) : c * mean[d];
    return true;
  }

  // Puts the tile of weights into `s`, and adds their column sums to `bias`.
  void weigh(const TileScratch<C>& s, const Packed<C>& b, const Candidates<T>& candidates,
             const Block& I, const Block& J, int64_t row_part, int64_t) const {
    double* bias = bias_ ? bias_ + row_part * N_ : nullptr;
    const T *u = rows_.scaled + I.begin, *v = columns_.scaled ? columns_.scaled + J.begin : s.v;
    double center = center_;
    bool one_exp = common_;
    if (!common_) {
      Range<T> range;
      for (int64_t i = I.begin; i < I.end; ++i)
        range.include(rows_.level[i], rows_.weight[i], true);
      if (columns_.level)
        for (int64_t j = J.begin; j < J.end; ++j)
          range.include(columns_.level[j], columns_.weight[j], false);
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
              w = fma(V::load(columns_.weight + J.begin + k),
                      exp2(x - V::load(columns_.level + J.begin + k)), w);
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

  void finish_bias(int64_t g) {
    T* out = static_cast<T*>(f_.dbias) + g * N_;
    for (int64_t r = 1; r < grid_.row_parts; ++r)
      for (int64_t j = 0; j < N_; ++j) bias_[j] += bias_[r * N_ + j];
    if (positive_)
      for (int64_t i = 0; i < M_; ++i) bias_[(i + f_.positive) % N_] += positive_[i];
    for (int64_t j = 0; j < N_; ++j) out[j] = T(bias_[j] * upstream_scale_);
  }

  Weights<T> rows_, columns_;
  double center_ = 0;
  bool common_ = false;
  double *row_ = nullptr, *column_ = nullptr, *bias_ = nullptr;
};

}  // namespace fused_contrastive::FUSED_ISA
