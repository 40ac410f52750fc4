// What the passes over tiles of all families share: blocks and their threads, the packed sets, the
// logits' factor and additive part, and the logits of positives.
#pragma once

#include "tile.h"

namespace fused_contrastive::FUSED_ISA {

// Which packed copies of a set a pass reads: as a side of the logits' product, or as the right side
// of a product with weights.
struct Copies {
  bool logits, values;
};

// Pass has run_group(worker, g), which every thread calls for each group.
template <class Pass, class C, class Arguments>
class TilePass {
 public:
  void run(int64_t g) {
    row_turns_.reset();
    column_turns_.reset();
    team_.run([&](Worker& worker) { static_cast<Pass*>(this)->run_group(worker, g); });
  }

 protected:
  using T = typename C::T;
  using V = Vec<T>;
  static constexpr int P = PANEL<T>, W = V::W;

  // `row_sums`, `column_sums`: which sums a tile adds to. `rows`: how many rows of D elements the
  // scratch holds beside a tile.
  TilePass(const Arguments& f, Runtime* runtime, int threads, double factor, bool row_sums,
           bool column_sums, Copies a, Copies b, int64_t rows = 0)
      : f_(f),
        M_(f.a.n),
        N_(f.b.n),
        D_(f.D),
        size_(block_size(M_, N_, f.D, f.one_set)),
        grid_(M_, N_, size_, row_sums, column_sums),
        team_(runtime, int(std::min<int64_t>(threads, width())),
              TileScratch<C>::bytes(size_, D_) + rows * int64_t(sizeof(T)) * D_),
        row_turns_(grid_.row_blocks() * grid_.column_parts),
        column_turns_(grid_.column_blocks() * grid_.row_parts),
        factor_(factor * LOG2_E),
        a_(runtime, M_, D_, a.logits, a.values, !f.one_set),
        b_(runtime, N_, D_, b.logits, b.values, false),
        add_(allocate<T>(runtime, N_ + P)) {}

  // The packed set of the columns.
  const Packed<C>& columns_set() const { return f_.one_set ? a_ : b_; }

  // Forward passes: normalises, rounds and packs both sets.
  void prepare_sets(Worker& worker, int64_t g) {
    prepare(worker, f_.a, g, f_.normalize, f_.matrix, a_);
    if (!f_.one_set) prepare(worker, f_.b, g, f_.normalize, f_.matrix, b_);
  }

  // Logits of up to MR rows from `first` on with their positives, in units of log 2. They come from
  // the same products as in the tiles, so that equal pairs have equal logits.
  class PositiveLogits {
   public:
    PositiveLogits(const TilePass& pass, int64_t first) : pass_(pass), first_(first) {}
    double operator()(int64_t i, int64_t j) {
      if (j / W * W != column_) {
        column_ = j / W * W;
        logits_block<C, 1>(pass_.a_.rows(first_), pass_.a_.width, pass_.columns_set().rows(column_),
                           pass_.a_.units, pass_.factor_, pass_.add_ + column_, t_, W);
      }
      return double(t_[(i - first_) * W + j - column_]);
    }

   private:
    const TilePass& pass_;
    int64_t first_, column_ = -1;
    T t_[MR * W];
  };

  const Arguments& f_;
  int64_t M_, N_, D_, size_;
  Grid grid_;
  Team team_;
  Turns row_turns_, column_turns_;
  Factor<T> factor_;
  Packed<C> a_, b_;
  T* add_;

 private:
  // How many tiles can run at a time.
  int64_t width() const { return f_.one_set ? (grid_.row_blocks() + 1) / 2 : grid_.width(); }
};

}  // namespace fused_contrastive::FUSED_ISA
