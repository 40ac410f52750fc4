// The forward pass of the similarity family: log-sum-exps of rows and columns over the candidates,
// positives, loss, and with `mean` the softmax-weighted mean of b.
//
// Flops: N^2 D for one set (half the tiles, each of which serves its rows and its columns), 2 M N D
// for two sets, 4 M N D with `mean`. Bytes: every tile of B x B logits reads two blocks of B packed
// rows, 8 B D for 2 B^2 D flops. The logits themselves stay in the caches. Schedule: team.h.
//
// Where |logits| <= 60 is known beforehand (600 in double) no maximum is needed, and one exp per
// element serves row and column. Otherwise sums are kept relative to a power of two that follows
// the maximum.
#pragma once

#include "running_sum.h"
#include "similarity.h"
#include "tile_pass.h"

namespace fused_contrastive::FUSED_ISA {

// Whether sums of exp(s), and with `mean` of exp(s) b, can do without subtracting a maximum. They
// can where nothing overflows, and nothing that matters underflows.
template <class T>
bool needs_no_maximum(const SimilarityForward& f, double norm_a, double norm_b, double bias) {
  const double bound = std::fabs(f.scale) * norm_a * norm_b + bias,
               limit = sizeof(T) == 8 ? 600 : 60;
  return bound <= limit && (!f.mean || bound + std::log(double(f.b.n) * norm_b) <= 1.4 * limit);
}

template <class C>
class SimilarityForwardPass : public TilePass<SimilarityForwardPass<C>, C, SimilarityForward> {
  using Base = TilePass<SimilarityForwardPass<C>, C, SimilarityForward>;
  friend Base;
  using Base::a_, Base::add_, Base::b_, Base::D_, Base::f_, Base::factor_, Base::grid_, Base::M_,
      Base::N_, Base::P, Base::row_turns_, Base::column_turns_, Base::size_, Base::W;
  using typename Base::PositiveLogits;
  using typename Base::T;
  using typename Base::V;
  static constexpr T NONE = -std::numeric_limits<T>::infinity();
  static constexpr int64_t CHUNK = 512;

 public:
  SimilarityForwardPass(const SimilarityForward& f, Runtime* runtime, int threads)
      : Base(f, runtime, threads, f.scale, true, !f.one_set && f.cols, {true, false},
             {!f.one_set, f.mean != nullptr}) {
    rows_ = allocate<RunningSum>(runtime, grid_.column_parts * M_);
    if (grid_.columns) columns_ = allocate<RunningSum>(runtime, grid_.row_parts * N_);
    if (f.row_max) row_top_ = allocate<T>(runtime, grid_.column_parts * M_);
    if (f.col_max && grid_.columns) column_top_ = allocate<T>(runtime, grid_.row_parts * N_);
    if (f.mean && grid_.column_parts > 1)
      mean_ = allocate<T>(runtime, grid_.column_parts * M_ * D_);
  }

  static double work(const SimilarityForward& f) {
    return double(f.a.n) * double(f.b.n) * double(f.D) * (f.one_set ? 0.5 : f.mean ? 2 : 1);
  }

 private:
  void run_group(Worker& worker, int64_t g) {
    const Packed<C>& b = this->columns_set();
    this->prepare_sets(worker, g);
    worker.tasks(1, [&](int64_t) { start(g, b); });
    const Candidates<T> candidates(f_, g);
    const TileScratch<C> s(worker.scratch<T>(), size_);
    const auto tile = [&](const Block& I, const Block& J, RunningSum* rows, RunningSum* columns,
                          T* row_top, T* column_top, T* mean) {
      if (!mean && !candidates.any(I.begin, I.end, J.begin, J.end)) return;
      if (fast_)
        fast_tile(s, b, candidates, I, J, rows, columns, mean);
      else
        shifted_tile(s, b, candidates, I, J, rows, columns, row_top, column_top, mean);
    };
    if (f_.one_set)
      tournament(worker, row_turns_, M_, size_, [&](const Block& I, const Block& J) {
        const bool both = fast_ || I.index != J.index;
        tile(I, J, rows_, both ? rows_ : nullptr, row_top_, both ? row_top_ : nullptr, nullptr);
      });
    else
      grid_tiles(worker, row_turns_, column_turns_, grid_,
                 [&](const Block& I, const Block& J, int64_t r, int64_t c) {
                   tile(I, J, rows_ + c * M_, columns_ ? columns_ + r * N_ : nullptr,
                        row_top_ ? row_top_ + c * M_ : nullptr,
                        column_top_ ? column_top_ + r * N_ : nullptr,
                        mean_ ? mean_ + c * M_ * D_ : nullptr);
                 });
    finish(worker, g);
  }

  // Sets the additive part, whether a maximum is needed, and empty sums.
  void start(int64_t g, const Packed<C>& b) {
    const double bias = additive(f_, g, N_ + P, add_);
    fast_ = !f_.row_max && needs_no_maximum<T>(f_, norm(a_), norm(b), bias);
    const RunningSum empty{0, fast_ ? 0 : -std::numeric_limits<double>::infinity()};
    std::fill_n(rows_, grid_.column_parts * M_, empty);
    if (columns_) std::fill_n(columns_, grid_.row_parts * N_, empty);
    if (row_top_) std::fill_n(row_top_, grid_.column_parts * M_, NONE);
    if (column_top_) std::fill_n(column_top_, grid_.row_parts * N_, NONE);
    if (f_.mean && grid_.column_parts == 1) mean_ = static_cast<T*>(f_.mean) + g * M_ * D_;
  }

  static double norm(const Packed<C>& z) {
    double largest = 0;
    for (int64_t i = 0; i < z.panels(); ++i)
      if (!(z.row_norm[i] <= largest) && largest == largest) largest = z.row_norm[i];
    return std::sqrt(largest);
  }

  void fast_tile(const TileScratch<C>& s, const Packed<C>& b, const Candidates<T>& candidates,
                 const Block& I, const Block& J, RunningSum* rows, RunningSum* columns,
                 T* mean) const {
    std::fill_n(s.row_vectors, size_ * W, T(0));
    std::fill_n(s.column_sums, size_, T(0));
    // Blocks on the diagonal hold both orders of a pair.
    const bool triangle = f_.one_set && I.index == J.index;
    const auto visit = [&](int64_t i, int64_t m, int64_t j, const T* t, int64_t ld, auto count) {
      constexpr int NR = count();
      V below[NR];
      for (int c = 0; c < NR; ++c) below[c] = V::load(s.column_sums + j + c * W);
      const auto two_rows = [&](int64_t r, bool second) {
        V x[NR], y[NR], across_x(T(0)), across_y(T(0));
#pragma GCC unroll 4
        for (int c = 0; c < NR; ++c) {
          x[c] = exp2(V::load(t + r * ld + c * W));
          y[c] = second ? exp2(V::load(t + (r + 1) * ld + c * W)) : V(T(0));
          across_x = across_x + x[c];
          across_y = across_y + y[c];
          below[c] = below[c] + (x[c] + y[c]);
          if (mean) store_weights<C>(s, size_, i + r, j + c * W, x[c], y[c], second);
        }
        T* row = s.row_vectors + (i + r) * W;
        (V::load(row) + across_x).store(row);
        if (second) (V::load(row + W) + across_y).store(row + W);
      };
      if (m == MR)
#pragma GCC unroll 4
        for (int64_t r = 0; r < MR; r += 2) two_rows(r, true);
      else
        for (int64_t r = 0; r < m; r += 2) two_rows(r, r + 1 < m);
      if (triangle && i >= j) return;
      for (int c = 0; c < NR; ++c) below[c].store(s.column_sums + j + c * W);
    };
    logits_tile(a_, b, I, J, factor_, add_ + J.begin, candidates, s.block, P, false, triangle,
                visit);
    for (int64_t i = 0; i < I.size(); ++i)
      rows[I.begin + i].sum += sum(V::load(s.row_vectors + i * W));
    if (columns)
      for (int64_t j = 0; j < J.size(); ++j) columns[J.begin + j].sum += s.column_sums[j];
    if (mean) add_rows(s, size_, I, J, b, mean + I.begin * D_, !I.first);
  }

  void shifted_tile(const TileScratch<C>& s, const Packed<C>& b, const Candidates<T>& candidates,
                    const Block& I, const Block& J, RunningSum* rows, RunningSum* columns,
                    T* row_top, T* column_top, T* mean) const {
    T *top = s.u, *column_max = s.v;
    std::fill_n(s.row_vectors, size_ * W, NONE);
    std::fill_n(column_max, size_, NONE);
    logits_tile(a_, b, I, J, factor_, add_ + J.begin, candidates, s.tile, size_, true, false,
                [&](int64_t i, int64_t m, int64_t j, const T* t, int64_t ld, auto count) {
                  constexpr int NR = count();
                  for (int64_t r = 0; r < m; ++r)
                    for (int c = 0; c < NR; ++c) {
                      const V x = V::load(t + r * ld + c * W);
                      T *row = s.row_vectors + (i + r) * W, *column = column_max + j + c * W;
                      maximum(x, V::load(row)).store(row);
                      maximum(x, V::load(column)).store(column);
                    }
                });
    T highest = NONE, lowest = -NONE;
    const auto range = [&](T x) {
      highest = std::max(highest, x);
      if (x != NONE) lowest = std::min(lowest, x);
    };
    for (int64_t i = 0; i < I.size(); ++i) {
      range(top[i] = maximum_of(V::load(s.row_vectors + i * W)));
      if (row_top) row_top[I.begin + i] = std::max(row_top[I.begin + i], top[i]);
    }
    if (columns)
      for (int64_t j = 0; j < J.size(); ++j) {
        range(column_max[j]);
        if (column_top) column_top[J.begin + j] = std::max(column_top[J.begin + j], column_max[j]);
      }
    const int64_t width = (J.size() + W - 1) / W * W;
    if (mean) return weigh_shifted(s, b, I, J, width, top, rows, mean);
    // Within this limit no row or column loses its leading terms.
    const bool one_shift = highest - lowest <= (sizeof(T) == 8 ? 800 : 80);
    const T common = one_shift && highest != NONE ? std::ceil(highest) : T(0);
    std::fill_n(s.column_sums, size_, T(0));
    for (int64_t i = 0; i < I.size(); ++i) {
      const T shift = one_shift ? common : top[i] == NONE ? T(0) : std::ceil(top[i]);
      V across(T(0));
      for (int64_t j = 0; j < width; j += W) {
        const V t = V::load(s.tile + i * size_ + j), x = exp2(t - V(shift));
        across = across + x;
        if (columns && one_shift) (V::load(s.column_sums + j) + x).store(s.column_sums + j);
      }
      rows[I.begin + i].add(sum(across), shift);
    }
    if (!columns) return;
    for (int64_t j = 0; j < size_; ++j)
      column_max[j] = one_shift ? common : column_max[j] == NONE ? T(0) : std::ceil(column_max[j]);
    if (!one_shift)
      for (int64_t i = 0; i < I.size(); ++i)
        for (int64_t j = 0; j < width; j += W) {
          const V x = exp2(V::load(s.tile + i * size_ + j) - V::load(column_max + j));
          (V::load(s.column_sums + j) + x).store(s.column_sums + j);
        }
    for (int64_t j = 0; j < J.size(); ++j)
      columns[J.begin + j].add(s.column_sums[j], column_max[j]);
  }

  // Computes weights 2^(t - reference of the row). What earlier tiles left in `mean` follows a new
  // reference.
  void weigh_shifted(const TileScratch<C>& s, const Packed<C>& b, const Block& I, const Block& J,
                     int64_t width, const T* top, RunningSum* rows, T* mean) const {
    for (int64_t i = 0; i < I.size(); i += 2) {
      T shift[2];
      const int64_t m = std::min<int64_t>(2, I.size() - i);
      for (int64_t r = 0; r < m; ++r) {
        RunningSum& row = rows[I.begin + i + r];
        const double reference = std::max(row.reference, double(std::ceil(top[i + r])));
        shift[r] = std::isinf(reference) && reference < 0 ? T(0) : T(reference);
        if (!I.first && row.reference < reference) {
          const T factor = T(power_of_two(row.reference - reference));
          for (int64_t d = 0; d < D_; ++d) mean[(I.begin + i + r) * D_ + d] *= factor;
        }
        row.sum *= row.reference < reference ? power_of_two(row.reference - reference) : 1;
        row.reference = reference;
      }
      V across[2] = {V(T(0)), V(T(0))};
      for (int64_t j = 0; j < width; j += W) {
        const V x = exp2(V::load(s.tile + i * size_ + j) - V(shift[0]));
        const V y = m == 2 ? exp2(V::load(s.tile + (i + 1) * size_ + j) - V(shift[1])) : V(T(0));
        across[0] = across[0] + x;
        across[1] = across[1] + y;
        store_weights<C>(s, size_, i, j, x, y, m == 2);
      }
      for (int64_t r = 0; r < m; ++r) rows[I.begin + i + r].sum += sum(across[r]);
    }
    add_rows(s, size_, I, J, b, mean + I.begin * D_, !I.first);
  }

  // Adds up the parts. Afterwards the first part's sum is the log-sum-exp.
  void total(Worker& worker, RunningSum* sums, T* top, int64_t n, int64_t parts, int64_t g,
             void* lse, void* maximum) {
    worker.tasks((n + CHUNK - 1) / CHUNK, [&](int64_t task) {
      const auto put = [&](void* out, int64_t i, T x) {
        if (out) static_cast<T*>(out)[g * n + i] = x;
      };
      for (int64_t i = task * CHUNK; i < std::min(n, (task + 1) * CHUNK); ++i) {
        for (int64_t part = 1; part < parts; ++part) {
          sums[i].add(sums[part * n + i].sum, sums[part * n + i].reference);
          if (top) top[i] = std::max(top[i], top[part * n + i]);
        }
        const auto [x, lost] = sums[i].log();
        const T highest = !top ? T(0) : x == x ? T(double(top[i]) * LN_2) : T(x);
        put(lse, i, T(x));
        static_cast<T*>(lse)[(f_.G + g) * n + i] =
            std::isfinite(x) ? T(x - double(T(x)) + lost) : T(0);
        put(maximum, i, highest);
        sums[i].sum = x;
      }
    });
  }

  void finish(Worker& worker, int64_t g) {
    if (f_.mean) normalise_mean(worker, g);
    total(worker, rows_, row_top_, M_, grid_.column_parts, g, f_.rows, f_.row_max);
    if (columns_) total(worker, columns_, column_top_, N_, grid_.row_parts, g, f_.cols, f_.col_max);
    if (f_.positive < 0) return;
    const RunningSum* columns = columns_;
    worker.tasks((M_ + P - 1) / P, [&](int64_t task) {
      for (int64_t i0 = task * P; i0 < std::min(M_, (task + 1) * P); i0 += MR) {
        PositiveLogits positive(*this, i0);
        for (int64_t i = i0; i < std::min(M_, i0 + MR); ++i) {
          const int64_t j = (i + f_.positive) % N_;
          const double pos = positive(i, j) * LN_2;
          double loss = softplus(rows_[i].sum - pos) + undefined(rows_[i].sum, pos);
          if (columns)
            loss = 0.5 * (loss + softplus(columns[j].sum - pos) + undefined(columns[j].sum, pos));
          static_cast<T*>(f_.pos)[g * M_ + i] = T(pos);
          static_cast<T*>(f_.loss)[g * M_ + i] = T(loss);
        }
      }
    });
  }

  void normalise_mean(Worker& worker, int64_t g) {
    const int64_t parts = grid_.column_parts;
    worker.tasks((M_ + P - 1) / P, [&](int64_t task) {
      for (int64_t i = task * P; i < std::min(M_, (task + 1) * P); ++i) {
        RunningSum all = rows_[i];
        for (int64_t part = 1; part < parts; ++part)
          all.add(rows_[part * M_ + i].sum, rows_[part * M_ + i].reference);
        T* out = static_cast<T*>(f_.mean) + (g * M_ + i) * D_;
        for (int64_t part = 0; part < parts; ++part) {
          const RunningSum& sum = rows_[part * M_ + i];
          const double share =
              sum.reference == all.reference ? 1 : power_of_two(sum.reference - all.reference);
          const T factor = sum.sum == 0 ? T(0) : T(share / all.sum);
          const T* weighted = mean_ + (part * M_ + i) * D_;
          for (int64_t d = 0; d < D_; ++d) out[d] = factor * weighted[d] + (part ? out[d] : T(0));
        }
      }
    });
  }

  bool fast_ = false;
  RunningSum *rows_ = nullptr, *columns_ = nullptr;
  T *row_top_ = nullptr, *column_top_ = nullptr, *mean_ = nullptr;
};

}  // namespace fused_contrastive::FUSED_ISA
