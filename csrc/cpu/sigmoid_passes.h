// The passes of the sigmoid family, with y_ij = sign (scale <a_i, b_j> + row_bias_i) over the
// candidates. Forward: rows_i = sum_j softplus(y_ij), and the positive's softplus(-y). Backward:
// W_ij = g_i sign sigmoid(y_ij). For one set each tile serves its rows and its columns, whose
// biases differ: two exps per element, half the products.
//
// For flops, bytes and schedule see similarity_forward.h and gradient_pass.h. In units of log 2, t
// = y / log 2. Terms are accurate relative to themselves on both sides. They are added up in T
// within a tile and in double across tiles.
#pragma once

#include "gradient_pass.h"
#include "running_sum.h"
#include "sigmoid.h"

namespace fused_contrastive::FUSED_ISA {

// Minimax polynomials of 2 / log(2) atanh(u) / u in u^2 for u <= 1/3. Their relative errors are
// 4e-9 (degree 4) and 5e-17 (degree 9).
template <class V>
FUSED_INLINE V atanh_polynomial(V w, float) {
  V p = fma(w, V(0.40652744290139406f), V(0.40338622923610602f));
  p = fma(p, w, V(0.57743739572315342f));
  p = fma(p, w, V(0.96179161586249842f));
  return fma(p, w, V(2.8853900932055693f));
}

template <class V>
FUSED_INLINE V atanh_polynomial(V w, double) {
  V p = fma(w, V(0.25675643713871303684), V(0.14243268631945220008));
  p = fma(p, w, V(0.19610542252921436125));
  p = fma(p, w, V(0.22164826630902030401));
  p = fma(p, w, V(0.26232339497367356467));
  p = fma(p, w, V(0.32059843868974748526));
  p = fma(p, w, V(0.41219859105244973102));
  p = fma(p, w, V(0.57707801628600892157));
  p = fma(p, w, V(0.96179669392621170686));
  return fma(p, w, V(2.8853900817779266827));
}

// log2(1 + 2^t) as max(t, 0) + log2(1 + e) with e = 2^-|t| and log(1 + e) = 2 atanh(e / (2 + e)).
template <class T>
FUSED_INLINE Vec<T> softplus2(Vec<T> t) {
  using V = Vec<T>;
  const V e = exp2(V(T(0)) - maximum(V(T(0)) - t, t)), u = e / (e + V(T(2)));
  return fma(u, atanh_polynomial(u * u, T(0)), maximum(V(T(0)), t));
}

// 1 / (1 + 2^-t). It is 0 from where 2^-t overflows.
template <class T>
FUSED_INLINE Vec<T> sigmoid2(Vec<T> t) {
  using V = Vec<T>;
  return V(T(1)) / (V(T(1)) + exp2(V(T(0)) - maximum(V(T(sizeof(T) == 8 ? -1200 : -200)), t)));
}

// sign row_bias_i, and for the tiles the same in units of log 2. There +inf becomes the largest
// finite number, so that the t = -inf of a pair that is no candidate stays.
template <class T, class F>
double signed_bias(const F& f, int64_t g, int64_t i) {
  return f.row_bias ? f.sign * double(static_cast<const T*>(f.row_bias)[g * f.a.n + i]) : 0.0;
}
template <class T, class F>
void signed_biases(const F& f, int64_t g, int64_t padded, T* out) {
  for (int64_t i = 0; i < padded; ++i) {
    const T x = i < f.a.n ? T(signed_bias<T>(f, g, i) * LOG2_E) : T(0);
    out[i] = x > std::numeric_limits<T>::max() ? std::numeric_limits<T>::max() : x;
  }
}

template <class C>
class SigmoidForwardPass : public TilePass<SigmoidForwardPass<C>, C, SigmoidForward> {
  using Base = TilePass<SigmoidForwardPass<C>, C, SigmoidForward>;
  friend Base;
  using Base::a_, Base::add_, Base::f_, Base::factor_, Base::grid_, Base::M_, Base::N_, Base::P,
      Base::row_turns_, Base::size_, Base::W;
  using typename Base::PositiveLogits;
  using typename Base::T;
  using typename Base::V;
  static constexpr T NONE = -std::numeric_limits<T>::infinity();

 public:
  SigmoidForwardPass(const SigmoidForward& f, Runtime* runtime, int threads)
      : Base(f, runtime, threads, f.sign * f.scale, true, false, {true, false},
             {!f.one_set, false}) {
    parts_ = f.one_set ? 1 : grid_.column_parts;
    rows_ = allocate<double>(runtime, parts_ * M_);
    if (f.row_max) top_ = allocate<T>(runtime, parts_ * M_);
    bias_ = allocate<T>(runtime, M_ + P);
  }

  static double work(const SigmoidForward& f) {
    return double(f.a.n) * double(f.b.n) * double(f.D) * (f.one_set ? 0.5 : 1);
  }

 private:
  void run_group(Worker& worker, int64_t g) {
    const Packed<C>& b = this->columns_set();
    this->prepare_sets(worker, g);
    worker.tasks(1, [&](int64_t) {
      signed_biases(f_, g, M_ + P, bias_);
      std::fill_n(add_, N_ + P, T(0));
      std::fill_n(rows_, parts_ * M_, 0.0);
      if (top_) std::fill_n(top_, parts_ * M_, NONE);
    });
    const Candidates<T> candidates(f_, g);
    const TileScratch<C> s(worker.scratch<T>(), size_);
    if (f_.one_set)
      tournament(worker, row_turns_, M_, size_, [&](const Block& I, const Block& J) {
        tile(s, b, candidates, I, J, rows_, top_, I.index != J.index);
      });
    else
      grid_tiles(worker, row_turns_, row_turns_, grid_,
                 [&](const Block& I, const Block& J, int64_t, int64_t c) {
                   tile(s, b, candidates, I, J, rows_ + c * M_, top_ ? top_ + c * M_ : nullptr,
                        false);
                 });
    worker.tasks((M_ + P - 1) / P, [&](int64_t task) {
      for (int64_t i = task * P; i < std::min(M_, (task + 1) * P); i += MR) finish(g, i);
    });
  }

  // Adds the tile to the sums and maxima of its rows and, with `both`, of its columns, which are
  // rows, too.
  void tile(const TileScratch<C>& s, const Packed<C>& b, const Candidates<T>& candidates,
            const Block& I, const Block& J, double* rows, T* top, bool both) const {
    if (!candidates.any(I.begin, I.end, J.begin, J.end)) return;
    T *row_top = s.tile, *column_top = s.v;
    std::fill_n(s.row_vectors, size_ * W, T(0));
    std::fill_n(s.column_sums, size_, T(0));
    if (top) std::fill_n(row_top, size_ * W, NONE), std::fill_n(column_top, size_, NONE);
    const auto visit = [&](int64_t i, int64_t m, int64_t j, const T* t, int64_t ld, auto count) {
      constexpr int NR = count();
      const T* bias = bias_ + I.begin + i;
      for (int64_t r = 0; r < m; ++r) {
        V across(T(0)), highest(NONE);
#pragma GCC unroll 4
        for (int c = 0; c < NR; ++c) {
          const V y = V::load(t + r * ld + c * W) + V(bias[r]);
          across = across + softplus2(y);
          highest = maximum(y, highest);
        }
        T *row = s.row_vectors + (i + r) * W, *highest_row = row_top + (i + r) * W;
        (V::load(row) + across).store(row);
        if (top) maximum(highest, V::load(highest_row)).store(highest_row);
      }
      if (!both) return;
      for (int c = 0; c < NR; ++c) {
        T *column = s.column_sums + j + c * W, *highest_column = column_top + j + c * W;
        const V added = V::load(bias_ + J.begin + j + c * W);
        V below(T(0)), highest(NONE);
        for (int64_t r = 0; r < m; ++r) {
          const V y = V::load(t + r * ld + c * W) + added;
          below = below + softplus2(y);
          highest = maximum(y, highest);
        }
        (V::load(column) + below).store(column);
        if (top) maximum(highest, V::load(highest_column)).store(highest_column);
      }
    };
    logits_tile(a_, b, I, J, factor_, add_ + J.begin, candidates, s.block, P, false, false, visit);
    for (int64_t i = 0; i < I.size(); ++i) {
      rows[I.begin + i] += sum(V::load(s.row_vectors + i * W));
      if (top) top[I.begin + i] = std::max(top[I.begin + i], maximum_of(V::load(row_top + i * W)));
    }
    for (int64_t j = 0; both && j < J.size(); ++j) {
      rows[J.begin + j] += s.column_sums[j];
      if (top) top[J.begin + j] = std::max(top[J.begin + j], column_top[j]);
    }
  }

  // Adds up the parts and the positives of up to MR rows from i0.
  void finish(int64_t g, int64_t i0) const {
    PositiveLogits positive(*this, i0);
    for (int64_t i = i0; i < std::min(M_, i0 + MR); ++i) {
      const double bias = signed_bias<T>(f_, g, i);
      // In the tiles an infinite bias was the largest finite number.
      const bool infinite = std::isinf(bias) && bias > 0;
      double total = 0;
      T highest = NONE;
      for (int64_t part = 0; part < parts_; ++part) {
        total += rows_[part * M_ + i];
        if (top_) highest = std::max(highest, top_[part * M_ + i]);
      }
      total = infinite && total > 0 ? bias : total * LN_2;
      if (top_) {
        const T x = total != total                ? T(total)
                    : infinite && highest != NONE ? T(bias)
                                                  : T(double(highest) * LN_2);
        static_cast<T*>(f_.row_max)[g * M_ + i] = x;
      }
      if (f_.positive >= 0) {
        const double y = positive(i, (i + f_.positive) % N_) * LN_2 + bias;
        static_cast<T*>(f_.pos)[g * M_ + i] = T(f_.sign * y);
        total += softplus(-y);
      }
      static_cast<T*>(f_.rows)[g * M_ + i] = T(total);
    }
  }

  int64_t parts_;
  double* rows_ = nullptr;
  T *top_ = nullptr, *bias_ = nullptr;
};

template <class C>
class SigmoidBackwardPass : public GradientPass<SigmoidBackwardPass<C>, C, SigmoidBackward> {
  using Base = GradientPass<SigmoidBackwardPass<C>, C, SigmoidBackward>;
  friend Base;
  using Base::a_, Base::add_, Base::f_, Base::factor_, Base::grid_, Base::M_, Base::N_, Base::P,
      Base::positive_, Base::size_, Base::upstream_scale_, Base::W;
  using typename Base::T;
  using typename Base::V;

 public:
  SigmoidBackwardPass(const SigmoidBackward& f, Runtime* runtime, int threads)
      : Base(f, runtime, threads, f.sign * f.scale, true, f.dbias, false) {
    bias_ = allocate<T>(runtime, M_ + P);
    coefficient_ = allocate<T>(runtime, M_ + P);
    if (f.dbias) sums_ = allocate<double>(runtime, (f.one_set ? 1 : grid_.column_parts) * M_);
  }

 private:
  void coefficients(int64_t g) {
    const T* upstream = static_cast<const T*>(f_.g) + g * M_;
    double largest = 0;
    for (int64_t i = 0; i < M_; ++i)
      if (std::isfinite(upstream[i])) largest = std::max(largest, std::fabs(double(upstream[i])));
    upstream_scale_ = this->power_near(largest);
    for (int64_t i = 0; i < M_ + P; ++i)
      coefficient_[i] = i < M_ ? T(f_.sign * upstream[i] / upstream_scale_) : T(0);
    for (int64_t i = 0; positive_ && i < M_; ++i)
      positive_[i] = -double(coefficient_[i]) *
                     logistic(-f_.sign * double(static_cast<const T*>(f_.pos)[g * M_ + i]));
    signed_biases(f_, g, M_ + P, bias_);
    std::fill_n(add_, f_.b.n + P, T(0));
    if (sums_) std::fill_n(sums_, (f_.one_set ? 1 : grid_.column_parts) * M_, 0.0);
  }

  static bool fill_row(int64_t, int64_t, T*) { return false; }

  // Puts the tile of weights into `s` (W + W^T for one set), and adds up the row sums of W.
  void weigh(const TileScratch<C>& s, const Packed<C>& b, const Candidates<T>& candidates,
             const Block& I, const Block& J, int64_t, int64_t column_part) const {
    double* sums = sums_ ? sums_ + column_part * M_ : nullptr;
    if (!f_.one_set) return weigh<false>(s, b, candidates, I, J, sums);
    weigh<true>(s, b, candidates, I, J, sums);
  }

  template <bool ONE_SET>
  void weigh(const TileScratch<C>& s, const Packed<C>& b, const Candidates<T>& candidates,
             const Block& I, const Block& J, double* sums) const {
    if (sums) std::fill_n(s.row_vectors, size_ * W, T(0)), std::fill_n(s.column_sums, size_, T(0));
    const auto visit = [&](int64_t i, int64_t m, int64_t j, const T* t, int64_t ld, auto count) {
      constexpr int NR = count();
      const T *bias = bias_ + I.begin + i, *coefficient = coefficient_ + I.begin + i;
      const auto two_rows = [&](int64_t r, bool second) {
#pragma GCC unroll 4
        for (int c = 0; c < NR; ++c) {
          const int64_t k = j + c * W;
          V below(T(0));
          const auto weight = [&](int64_t row) {
            const V x = V::load(t + row * ld + c * W);
            const V w = V(coefficient[row]) * sigmoid2(x + V(bias[row]));
            if (sums)
              (V::load(s.row_vectors + (i + row) * W) + w).store(s.row_vectors + (i + row) * W);
            if constexpr (!ONE_SET) return w;
            const V across =
                V::load(coefficient_ + J.begin + k) * sigmoid2(x + V::load(bias_ + J.begin + k));
            below = below + across;
            return w + across;
          };
          const V x = weight(r), y = second ? weight(r + 1) : V(T(0));
          store_weights<C>(s, size_, i + r, k, x, y, second);
          if (ONE_SET && sums) (V::load(s.column_sums + k) + below).store(s.column_sums + k);
        }
      };
      if (m == MR)
        for (int64_t r = 0; r < MR; r += 2) two_rows(r, true);
      else
        for (int64_t r = 0; r < m; r += 2) two_rows(r, r + 1 < m);
    };
    logits_tile(a_, b, I, J, factor_, add_ + J.begin, candidates, s.block, P, false, false, visit);
    for (int64_t i = 0; sums && i < I.size(); ++i)
      sums[I.begin + i] += sum(V::load(s.row_vectors + i * W));
    for (int64_t j = 0; ONE_SET && sums && I.index != J.index && j < J.size(); ++j)
      sums[J.begin + j] += s.column_sums[j];
  }

  void finish_bias(int64_t g) {
    T* out = static_cast<T*>(f_.dbias) + g * M_;
    for (int64_t i = 0; i < M_; ++i) {
      double total = positive_ ? positive_[i] : 0;
      for (int64_t part = 0; part < (f_.one_set ? 1 : grid_.column_parts); ++part)
        total += sums_[part * M_ + i];
      out[i] = T(total * upstream_scale_);
    }
  }

  T *bias_ = nullptr, *coefficient_ = nullptr;
  double* sums_ = nullptr;
};

}  // namespace fused_contrastive::FUSED_ISA
