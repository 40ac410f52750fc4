// What the backward passes of the families share. They form W b and W^T a from tiles of the weights
// W that a pass computes (for one set (W + W^T) z). Then come the positives, the scale and the
// Jacobian of the normalisation, row by row.
//
// Flops: 3 N^2 D for one set (half the logits again, with each tile of weights used twice), 2 M N D
// (1 + [G_a] + [G_b]) for two sets. Bytes: a tile of B x B reads four blocks of B D and updates
// two. Gradients are updated in place. Schedule: team.h.
#pragma once

#include "tile_pass.h"

namespace fused_contrastive::FUSED_ISA {

// Pass has these functions:
//   coefficients(g)      sets up a group, positive_ and upstream_scale_ included
//   weigh(s, b, candidates, I, J, row_part, column_part)
//                        puts the tile of weights, divided by upstream_scale_, into `s`
//   fill_row(g, i, row)  fills in row i of W b and returns true where it has it at hand
//   finish_bias(g)       writes the bias's gradient
template <class Pass, class C, class Arguments>
class GradientPass : public TilePass<GradientPass<Pass, C, Arguments>, C, Arguments> {
  using Base = TilePass<GradientPass<Pass, C, Arguments>, C, Arguments>;
  friend Base;

 protected:
  using Base::a_, Base::add_, Base::b_, Base::D_, Base::f_, Base::grid_, Base::M_, Base::N_,
      Base::P, Base::row_turns_, Base::column_turns_, Base::size_;
  using typename Base::T;
  using typename Base::V;

  // `tiles`: whether weights are needed at all. `row_sums`, `column_sums`: whether their sums along
  // rows or columns are needed, too.
  GradientPass(const Arguments& f, Runtime* runtime, int threads, double factor, bool tiles,
               bool row_sums, bool column_sums)
      : Base(f, runtime, threads, factor, needs_a(f) || row_sums, needs_b(f) || column_sums,
             {tiles, tiles && (needs_b(f) || f.one_set)},
             {tiles && !f.one_set, tiles && needs_a(f) && !f.one_set}, 2),
        need_a_(needs_a(f)),
        need_b_(needs_b(f)),
        tiles_(tiles) {
    const bool one = f.one_set;
    if (need_a_ && tiles_ &&
        (f.a.type != TYPE<T> || !f.a.gradient || (!one && grid_.column_parts > 1)))
      G_a_ = allocate<T>(runtime, (one ? 1 : grid_.column_parts) * M_ * D_);
    if (need_b_ && (f.b.type != TYPE<T> || grid_.row_parts > 1))
      G_b_ = allocate<T>(runtime, grid_.row_parts * N_ * D_);
    if (f.positive >= 0) positive_ = allocate<double>(runtime, M_);
    dots_ = allocate<double>(runtime, std::max(M_, N_));
  }

 public:
  static double work(const Arguments& f) {
    return double(f.a.n) * double(f.b.n) * double(f.D) * (f.one_set ? 1.5 : 2);
  }

 protected:
  // The power of two below `largest` whose inverse is finite, or 1 for 0. Upstream gradients are
  // divided by it.
  static double power_near(double largest) {
    return std::ldexp(1.0, largest > 0 ? std::clamp(std::ilogb(largest), -1022, 1022) : 0);
  }

  bool need_a_, need_b_, tiles_;
  double upstream_scale_ = 1;
  T *G_a_ = nullptr, *G_b_ = nullptr;
  double *positive_ = nullptr, *dots_ = nullptr;

 private:
  // The scale's gradient is the sum of <z_i, G_i> over one of the sets: that of b where only b has
  // a gradient, else that of a.
  static bool needs_a(const Arguments& f) {
    return f.a.gradient || (f.need_scale && !(f.b.gradient && !f.one_set));
  }
  static bool needs_b(const Arguments& f) { return !f.one_set && f.b.gradient; }

  Pass& pass() { return static_cast<Pass&>(*this); }

  void run_group(Worker& worker, int64_t g) {
    const int64_t panels_a = tiles_ ? a_.panels() : 0,
                  panels_b = tiles_ && !f_.one_set ? b_.panels() : 0;
    worker.tasks(1 + panels_a + panels_b, [&](int64_t task) {
      if (task == 0)
        pass().coefficients(g);
      else if (task <= panels_a)
        repack(worker, f_.a, g, f_.matrix, a_, task - 1);
      else
        repack(worker, f_.b, g, f_.matrix, b_, task - 1 - panels_a);
    });
    const auto in_place = [&](const Set& set) {
      return set.gradient && set.type == TYPE<T> ? static_cast<T*>(set.gradient) + g * set.n * D_
                                                 : nullptr;
    };
    T *G_a = G_a_ ? G_a_ : in_place(f_.a), *G_b = G_b_ ? G_b_ : in_place(f_.b);
    if (tiles_) all_tiles(worker, g, G_a, G_b);
    if (need_a_) finish(worker, g, f_.a, G_a, grid_.column_parts, true);
    if (need_b_) finish(worker, g, f_.b, G_b, grid_.row_parts, false);
    if (f_.dbias || f_.need_scale) worker.tasks(1, [&](int64_t) { finish_sums(g); });
  }

  void all_tiles(Worker& worker, int64_t g, T* G_a, T* G_b) {
    const Candidates<T> candidates(f_, g);
    const TileScratch<C> s(worker.scratch<T>(), size_);
    if (f_.one_set) {
      tournament(worker, row_turns_, M_, size_, [&](const Block& I, const Block& J) {
        // A tile without candidates is never a first tile, which is on the diagonal.
        if (!candidates.any(I.begin, I.end, J.begin, J.end)) return;
        pass().weigh(s, a_, candidates, I, J, 0, 0);
        if (!need_a_) return;
        add_rows(s, size_, I, J, a_, G_a + I.begin * D_, !I.first);
        if (I.index != J.index) add_columns(s, size_, I, J, a_, G_a + J.begin * D_, true);
      });
      return;
    }
    grid_tiles(worker, row_turns_, column_turns_, grid_,
               [&](const Block& I, const Block& J, int64_t r, int64_t c) {
                 T* rows = need_a_ ? G_a + (c * M_ + I.begin) * D_ : nullptr;
                 T* columns = need_b_ ? G_b + (r * N_ + J.begin) * D_ : nullptr;
                 if (!candidates.any(I.begin, I.end, J.begin, J.end)) {
                   if (rows && I.first) std::fill_n(rows, I.size() * D_, T(0));
                   if (columns && J.first) std::fill_n(columns, J.size() * D_, T(0));
                   return;
                 }
                 pass().weigh(s, b_, candidates, I, J, r, c);
                 if (rows) add_rows(s, size_, I, J, b_, rows, !I.first);
                 if (columns) add_columns(s, size_, I, J, a_, columns, !J.first);
               });
  }

  // Adds up the parts and the positives of every row, then applies the scale and the
  // normalisation's Jacobian.
  void finish(Worker& worker, int64_t g, const Set& set, T* G, int64_t parts, bool left) {
    const int64_t n = set.n;
    const bool dots = f_.need_scale && (left || !need_a_);
    if (f_.one_set) parts = 1;
    worker.tasks((n + P - 1) / P, [&](int64_t task) {
      T *buffer = worker.scratch<T>(), *x = buffer + D_;
      for (int64_t i = task * P; i < std::min(n, (task + 1) * P); ++i) {
        T* row = G ? G + i * D_ : x;
        const bool filled = left && pass().fill_row(g, i, row);
        for (int64_t part = 1; part < (filled ? 0 : parts); ++part)
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
          // The direction is that of x, not that of the rounded z.
          if (!(inv >= T(1 / NORM_FLOOR))) {
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

  // Adds row i's own positive and, for columns, the rows whose positive is i.
  void add_positives(int64_t g, int64_t i, bool left, T* row, T* buffer) const {
    const auto add = [&](const Set& set, int64_t j, T weight) {
      const T* z = rounded_row(set, g, j, D_, f_.matrix, buffer);
      for (int64_t d = 0; d < D_; ++d) row[d] += weight * z[d];
    };
    if (left) add(f_.b, (i + f_.positive) % N_, T(positive_[i]));
    if (!left || f_.one_set)
      for (int64_t k = Candidates<T>::floor_mod(i - f_.positive, N_); k < M_; k += N_)
        add(f_.a, k, T(positive_[k]));
  }

  void finish_sums(int64_t g) {
    if (f_.need_scale) {
      double total = 0;
      for (int64_t i = 0; i < (need_a_ ? M_ : N_); ++i) total += dots_[i];
      f_.dscale[g] = total * upstream_scale_ * (f_.one_set ? 0.5 : 1);
    }
    if (f_.dbias) pass().finish_bias(g);
  }
};

}  // namespace fused_contrastive::FUSED_ISA
