// Instantiates the tile kernels for one matrix precision: P multiplies pairs of rows and columns, R
// whole rows.
#pragma once

#include "fused_rows.cuh"
#include "pair_reduce.cuh"
#include "pair_weight.cuh"
#include "similarity.h"

namespace fused_contrastive {

template <class R>
void launch_any_rows(const RowsParams& r, Stream stream) {
  constexpr int SIZE = static_cast<int>(sizeof(typename R::Element));
  if constexpr (SIZE == 8) {
    launch_fused_rows<R, 64 * SIZE / CHUNK>(r, stream);
  } else if (r.p.D <= 64) {
    launch_fused_rows<R, 64 * SIZE / CHUNK>(r, stream);
  } else {
    launch_fused_rows<R, 128 * SIZE / CHUNK>(r, stream);
  }
}

template <class P, class R>
constexpr TileKernels tile_kernels() {
  return {{launch_pair_reduce<P>, launch_pair_weight<P>}, launch_any_rows<R>};
}

}  // namespace fused_contrastive
