// The force family for sets of any size. A block owns 64 rows and loops over the columns, or over
// one of `splits` parts of them. There are no atomics, and every run gives the same bits. Each
// kernel takes one pass over the pairs:
//
//   force_distances   sums of d weight per row
//   force_log_sums    log-sum-exps over the columns, of all temperatures; columns as rows give
//                     those over the rows
//   force_affinities  shifts and sums of both sides; with rms log sum (d A)^2 of each row
//   (force_weights.cuh: force_weights, force_inverses)
//
// Flops: 3 D per pair and pass, in 2 instructions per feature of a pair. Each pair, temperature and
// pass takes one exponential (affinities with rms two), and each distance a logarithm and a square
// root. Bytes: 64 x 64 tiles from L2 give 12 flop per byte at 32 bit; a panel takes 4 bytes per
// pair. Shared memory: 60 KiB (float64: 97 KiB).
//
// Predicted: 60 % of the instruction rate. On an H200 that is 30 TFLOP/s of 3 flops per pair and
// feature for force_distances from D = 128 on. The other epilogues take 10 (log_sums) to 25
// instructions (affinities with rms) per pair and temperature. 16 exponentials take a clock of an
// SM. At D = 128 with 5 temperatures that leaves 75 to 55 %.
#pragma once

#include "force_row_view.cuh"

namespace fused_contrastive {

// Sums of distances: out [splits, G, rows].
template <class T>
struct DistanceSums {
  using Acc = typename Accumulation<T>::type;
  RowView<T> view;
  double total;

  __device__ void operator()(const Acc (&squares)[4][4], const SideTiles& t) {
    Acc d[16], w[16], sum = 0;
    view.stage_weights(t);
    view.distances(d, squares);
    view.weights(w);
#pragma unroll
    for (int c = 0; c < 16; ++c)
      sum = view.column(t, c) < t.side_end() ? fma(d[c], w[c], sum) : sum;
    total += sum;
  }
  __device__ void finish(int split) {
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    const ForceParams& p = view.p;
    if (threadIdx.x % 4 != 0 || view.row() >= p.rows) return;
    static_cast<Acc*>(p.out)[(static_cast<int64_t>(split) * p.G + view.g) * p.rows + view.row()] =
        static_cast<Acc>(total);
  }
};

template <class T>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2)
    force_distances(const __grid_constant__ ForceParams p) {
  SHARED_MEMORY(shared);
  const RowBlock block(p.rows, p.splits, 1, 0);
  DistanceSums<T> epilogue{RowView<T>(p, block.g, block.i, 0, shared), 0};
  epilogue.view.run(SideTiles(block.i, p.P, p.P, block.split, p.splits), epilogue, shared);
  epilogue.finish(block.split);
}

// Log-sum-exps of `rows` points over the first `negatives` points: lse_rows [2, K, G, rows], or
// with splits their parts shift and sums [splits, K, G, rows].
template <class T>
struct LogSums {
  using Acc = typename Accumulation<T>::type;
  RowView<T> view;

  __device__ void operator()(const Acc (&squares)[4][4], const SideTiles& t) {
    Acc d[16];
    view.distances(d, squares);
#pragma unroll 1
    for (int k = 0; k < view.temperatures(); ++k) {
      const Acc f = view.factors[k];
      Acc top = -infinity(f), sum = 0;
#pragma unroll
      for (int c = 0; c < 16; ++c) top = left_out(t, c) ? top : fmax(top, -f * d[c]);
      top = view.sum_of(k).top(top);
      const Acc shift = shift_of(top);
#pragma unroll
      for (int c = 0; c < 16; ++c) {
        if (!left_out(t, c))
          sum += exponential(fma(-f, d[c], -shift));  // The product is not rounded.
      }
      view.sum_of(k).add(top, sum);
    }
  }
  __device__ bool left_out(const SideTiles& t, int c) const {
    const int column = view.column(t, c);
    return column >= t.side_end() || (view.p.mask && column == view.row());
  }
  __device__ void finish(int split) const {
    const ForceParams& p = view.p;
    if (threadIdx.x % 4 != 0 || view.row() >= p.rows) return;
    const int64_t planes = static_cast<int64_t>(p.K) * p.G * p.rows;
    for (int k = 0; k < view.temperatures(); ++k) {
      const RunningSum<Acc> of = view.sum_of(k);
      const int64_t place =
          (static_cast<int64_t>(view.k0 + k) * p.G + view.g) * p.rows + view.row();
      if (p.splits == 1) {
        LogOfSum<Acc>(of.maximum(), of.sum()).store(p.lse_rows, planes, place);
      } else {
        static_cast<Acc*>(p.shift)[split * planes + place] = of.maximum();
        static_cast<Acc*>(p.sums)[split * planes + place] = of.sum();
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2)
    force_log_sums(const __grid_constant__ ForceParams p) {
  SHARED_MEMORY(shared);
  constexpr int CHUNK_K = RowView<T>::CHUNK_K;
  const RowBlock block(p.rows, p.splits, ceil_div(p.K, CHUNK_K), CHUNK_K);
  LogSums<T> epilogue{RowView<T>(p, block.g, block.i, block.k0, shared)};
  epilogue.view.stage_factors();
  for (int k = 0; k < CHUNK_K; ++k) epilogue.view.sum_of(k).clear();
  epilogue.view.run(SideTiles(block.i, p.negatives, p.negatives, block.split, p.splits), epilogue,
                    shared);
  epilogue.finish(block.split);
}

// Computes shift and sums [splits, 2, K, G, rows]. With rms, over all points, it also computes
// squares [splits, K, G, P], the logarithms of the sums of (d A)^2 in float64. With separate it
// computes apart [splits, 2, K, G, rows], which is like shift but over the points that do not equal
// the row.
template <class T, bool RMS>
struct Affinities {
  using Acc = typename Accumulation<T>::type;
  RowView<T> view;

  __device__ void operator()(const Acc (&squares)[4][4], const SideTiles& t) {
    const ForceParams& p = view.p;
    Acc a[16];
    view.stage_terms(p.lse_cols, t);
    if (!RMS) view.stage_weights(t);
    view.publish(squares);
    const int row = min(view.row(), (RMS ? p.P : p.rows) - 1);
#pragma unroll 1
    for (int k = 0; k < view.temperatures(); ++k) {
      Acc top = -infinity(Acc(0)), sum = 0;
      view.affinities(row, view.row_lse(0, k), view.row_lse(1, k), k, t, [&](int c, Acc value) {
        a[c] = view.column(t, c) < t.side_end() ? value : -infinity(value);
        top = fmax(top, a[c]);
      });
      top = view.sum_of(k, t.side()).top(top);
      const Acc shift = shift_of(top);
#pragma unroll
      for (int c = 0; c < 16; ++c) {
        const Acc e = exponential(a[c] - shift);
        sum = RMS ? sum + e : fma(e, view.weight(c), sum);
      }
      view.sum_of(k, t.side()).add(top, sum);
      if (!RMS && !p.separate) continue;
      top = -infinity(top), sum = 0;
#pragma unroll
      for (int c = 0; c < 16; ++c) top = view.of_row(c) == Acc(0) ? top : fmax(top, a[c]);
      if (!RMS) view.apart_of(k, t.side()).raise(top);
      if (!RMS) continue;
      top = view.sum_of(k, 2).top(top);
#pragma unroll
      for (int c = 0; c < 16; ++c) sum += moment(view.of_row(c), a[c], top);
      view.sum_of(k, 2).add(top, sum, 2);
    }
  }
  __device__ void finish(int split) const {
    const ForceParams& p = view.p;
    if (threadIdx.x % 4 != 0) return;
    for (int k = 0; k < view.temperatures(); ++k) {
      for (int side = 0; side < 2 && view.row() < p.rows; ++side) {
        const int64_t plane = (static_cast<int64_t>(split) * 2 + side) * p.K + view.k0 + k;
        const int64_t place = (plane * p.G + view.g) * p.rows + view.row();
        static_cast<Acc*>(p.shift)[place] = view.sum_of(k, side).maximum();
        static_cast<Acc*>(p.sums)[place] = view.sum_of(k, side).sum();
        if (!RMS && p.separate)
          static_cast<Acc*>(p.apart)[place] = view.apart_of(k, side).maximum();
      }
      if (!RMS || view.row() >= p.P) continue;
      const int64_t plane = (static_cast<int64_t>(split) * p.K + view.k0 + k) * p.G + view.g;
      static_cast<double*>(p.squares)[plane * p.P + view.row()] =
          log_moments(view.sum_of(k, 2).maximum(), view.sum_of(k, 2).sum());
    }
  }
};

template <class T, bool RMS>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2)
    force_affinities(const __grid_constant__ ForceParams p) {
  using Acc = typename Accumulation<T>::type;
  SHARED_MEMORY(shared);
  constexpr int CHUNK_K = RowView<T>::CHUNK_K;
  const RowBlock block(RMS ? p.P : p.rows, p.splits, ceil_div(p.K, CHUNK_K), CHUNK_K);
  Affinities<T, RMS> epilogue{RowView<T>(p, block.g, block.i, block.k0, shared)};
  epilogue.view.stage_factors();
  epilogue.view.stage_rows();
  for (int n = 0; n < 3 * CHUNK_K; ++n) epilogue.view.sum_of(n / 3, n % 3).clear();
  for (int n = 0; !RMS && n < 2 * CHUNK_K; ++n) epilogue.view.apart_of(n / 2, n % 2).clear();
  epilogue.view.run(SideTiles(block.i, p.negatives, p.P, block.split, p.splits), epilogue, shared);
  epilogue.finish(block.split);
}

}  // namespace fused_contrastive
