// Panels of a matrix [rows, P] that multiplies coordinates, in a pass over the pairs like those of
// force_rows.cuh. Any tile may be any block's.
//
//   force_weights     weights of all temperatures added, or apart with `separate`
//   force_inverses    -2 g / d
//
// Flops: 3 D per pair, and one exponential per pair and temperature. Bytes: 4 (float64: 8) per pair
// and plane written. Shared memory: 60 KiB (float64: 97 KiB). Predicted: as force_rows.cuh.
#pragma once

#include "force_row_view.cuh"

namespace fused_contrastive {

// Stores one row's values of a tile into a panel, as far as the columns go.
template <class Acc>
__device__ inline void store_row(Acc* row, const Acc (&w)[16], int j, int end) {
#pragma unroll
  for (int c = 0; c < 16; c += 4) {
    const int column = j + c / 4 * 16 + static_cast<int>(threadIdx.x) % 4 * 4;
    Four<Acc> four;
#pragma unroll
    for (int e = 0; e < 4; ++e) four.v[e] = w[c + e];
    if ((reinterpret_cast<uint64_t>(row + column) & (alignof(Four<Acc>) - 1)) == 0 &&
        column + 4 <= end) {
      *reinterpret_cast<Four<Acc>*>(row + column) = four;
      continue;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e < end) row[column + e] = four.v[e];
    }
  }
}

// out [G, K or 1, count, P] receives the weights of the differences x_j - x_i, for the rows from
// `first` on. They are 0 where the differences are 0.
template <class T>
struct Weights {
  using Acc = typename Accumulation<T>::type;
  static constexpr int CHUNK_K = RowView<T>::CHUNK_K;
  RowView<T> view;

  __device__ void operator()(const Acc (&squares)[4][4], const SideTiles& t) {
    const ForceParams& p = view.p;
    Acc total[16] = {};
    const int row = min(view.row(), p.first + p.count - 1);
#pragma unroll 1
    for (view.k0 = 0; view.k0 < p.K; view.k0 += CHUNK_K) {
      if (view.k0 > 0) __syncthreads();  // All are done with the terms before.
      view.stage_terms(p.lse_cols, t);
      view.stage_factors();
      if (view.k0 == 0) {
        view.stage_weights(t);
        view.publish(squares);
      } else {
        __syncthreads();
      }
#pragma unroll 1
      for (int k = 0; k < view.temperatures(); ++k) {
        add_temperature(total, row, k, t);
        if (!p.separate) continue;
        store(total, view.k0 + k, t);
#pragma unroll
        for (int c = 0; c < 16; ++c) total[c] = 0;
      }
    }
    if (!p.separate) store(total, 0, t);
  }
  __device__ void add_temperature(Acc (&total)[16], int row, int k, const SideTiles& t) {
    const ForceParams& p = view.p;
    const int side = t.side();
    const int64_t plane = static_cast<int64_t>(view.k0 + k) * p.G + view.g,
                  place = plane * p.rows + row;
    const int64_t sides = static_cast<int64_t>(p.K) * p.G * p.rows;
    const Acc* shift = static_cast<const Acc*>(p.shift) + place;
    const Acc* sums = static_cast<const Acc*>(p.sums) + place;
    const double log_norm = static_cast<const double*>(p.wide)[plane];
    const int64_t other = side ? 0 : sides;
    const ForceLevel<Acc> of(shift[other], side ? sums[other] : -sums[other], log_norm);
    const int64_t count = p.all_rows ? p.P : p.rows;
    const Acc* lse = static_cast<const Acc*>(p.lse_rows) + plane * count + row;
    view.affinities(
        row, lse[0], lse[static_cast<int64_t>(p.K) * p.G * count], k, t,
        [&](int c, Acc a) { total[c] = fma(exponential(a - of.level), of.coefficient, total[c]); });
  }
  __device__ void store(const Acc (&total)[16], int plane, const SideTiles& t) const {
    const ForceParams& p = view.p;
    Acc w[16];
    view.weights(w);
#pragma unroll
    for (int c = 0; c < 16; ++c) w[c] = view.of_row(c) == Acc(0) ? Acc(0) : total[c] * w[c];
    if (view.row() >= p.first + p.count) return;
    const int64_t row = (static_cast<int64_t>(view.g) * (p.separate ? p.K : 1) + plane) * p.count +
                        view.row() - p.first;
    store_row(static_cast<Acc*>(p.out) + row * p.P, w, t.j, t.side_end());
  }
};

template <class T>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2)
    force_weights(const __grid_constant__ ForceParams p) {
  SHARED_MEMORY(shared);
  const RowBlock block(p.count, p.splits, 1, 0);
  Weights<T> epilogue{RowView<T>(p, block.g, p.first + block.i, 0, shared)};
  epilogue.view.run(SideTiles(p.first + block.i, p.negatives, p.P, block.split, p.splits), epilogue,
                    shared);
}

// out [G, count, P] receives -2 upstream_g / d, and 0 where d = 0.
template <class T>
struct Inverses {
  using Acc = typename Accumulation<T>::type;
  RowView<T> view;

  __device__ void operator()(const Acc (&squares)[4][4], const SideTiles& t) {
    const ForceParams& p = view.p;
    const Acc g = Acc(-2) * static_cast<const Acc*>(p.upstream)[view.g];
    Acc d[16];
    view.distances(d, squares);
#pragma unroll
    for (int c = 0; c < 16; ++c) d[c] = d[c] == Acc(0) ? d[c] : g / d[c];
    const int row = view.row() - p.first;
    if (row >= p.count) return;
    store_row(static_cast<Acc*>(p.out) + (static_cast<int64_t>(view.g) * p.count + row) * p.P, d,
              t.j, p.P);
  }
};

template <class T>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2)
    force_inverses(const __grid_constant__ ForceParams p) {
  SHARED_MEMORY(shared);
  const RowBlock block(p.count, p.splits, 1, 0);
  Inverses<T> epilogue{RowView<T>(p, block.g, p.first + block.i, 0, shared)};
  epilogue.view.run(SideTiles(p.first + block.i, p.P, p.P, block.split, p.splits), epilogue,
                    shared);
}

}  // namespace fused_contrastive
