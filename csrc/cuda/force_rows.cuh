// The force family for sets of any size: a block owns 64 rows and loops over the columns, or over
// one of `splits` parts of them. No atomics, the same bits in every run. One pass over the pairs
// each:
//
//   force_distances   sums of d weight per row
//   force_log_sums    log-sum-exps over the columns, of all temperatures; columns as rows give
//   those over the rows force_affinities  shifts and sums of both sides; with rms log sum (d A)^2
//   of each row (force_weights.cuh: force_weights, force_inverses)
//
// Flops: 3 D per pair and pass, 2 instructions per feature of a pair; one exponential per pair,
// temperature and pass (affinities with rms two), the log and the square root of a distance. Bytes:
// 64 x 64 tiles from L2, 12 flop per byte at 32 bit; 4 bytes per pair of a panel. Shared memory 60
// KiB (float64: 97 KiB). Predicted: 60 % of the instruction rate, which on an H200 is 30 TFLOP/s of
// 3 flops per pair and feature for force_distances from D = 128 on. The other epilogues take 10
// (log_sums) to 25 instructions (affinities with rms) per pair and temperature, and 16 exponentials
// take a clock of an SM: at D = 128 with 5 temperatures 75 to 55 % of that.
#pragma once

#include "force_distance.cuh"

namespace fused_contrastive {

// Tiles of columns: of the first `boundary` columns, then of those up to `end`, so that a tile has
// columns of one side.
struct SideTiles {
  static constexpr int TILE = 64;
  int i, tile, last, boundary, end;
  int j;

  __device__ SideTiles(int row, int first_columns, int columns, int split, int splits)
      : i(row), boundary(first_columns), end(columns) {
    const int tiles = ceil_div(boundary, TILE) + ceil_div(end - boundary, TILE),
              share = ceil_div(tiles, splits);
    tile = min(split * share, tiles);
    last = min(tile + share, tiles);
    place();
  }
  __device__ int side() const { return tile >= ceil_div(boundary, TILE); }
  __device__ int side_end() const { return side() ? end : boundary; }
  __device__ void place() {
    j = side() ? boundary + (tile - ceil_div(boundary, TILE)) * TILE : tile * TILE;
  }
  __device__ bool valid() const { return tile < last; }
  __device__ void next() {
    ++tile;
    place();
  }
};

// What a block does: rows [i, ..) of group g, against one part of the columns, for temperatures
// [k0, ..).
struct RowBlock {
  int g, i, split, k0;

  __device__ RowBlock(int count, int splits, int chunks, int chunk_size) {
    const int tiles = ceil_div(count, SideTiles::TILE);
    int index = static_cast<int>(blockIdx.x);
    i = index % tiles * SideTiles::TILE, index /= tiles;
    split = index % splits, index /= splits;
    k0 = index % chunks * chunk_size;
    g = index / chunks;
  }
};

// Sum of exponentials of a row so far, relative to its maximum, in shared memory; the four threads
// of a row add to it together. A barrier between two uses. Of plane 0: the maximum alone.
template <class Acc>
struct RunningSum {
  static constexpr int TILE = SideTiles::TILE;
  Acc* place;  // the maximum; `plane` elements on the sum
  int plane;

  static __device__ bool writes() { return threadIdx.x % 4 == 0; }
  __device__ Acc maximum() const { return place[0]; }
  __device__ Acc sum() const { return place[plane]; }
  __device__ void clear() const {
    if (writes()) place[plane] = 0, place[0] = -infinity(Acc(0));
  }
  // The largest of the maximum and the threads' own.
  __device__ Acc top(Acc own) const {
    own = fmax(own, maximum());
    own = fmax(own, shuffle_xor(own, 1));
    return fmax(own, shuffle_xor(own, 2));
  }
  __device__ void raise(Acc own) const {
    own = top(own);
    if (writes()) place[0] = own;
  }
  // Adds the threads' own sums of exp(. - top)^power.
  __device__ void add(Acc top, Acc own, int power = 1) const {
    own += shuffle_xor(own, 1);
    own += shuffle_xor(own, 2);
    if (!writes()) return;
    const Acc less = exponential(maximum() - shift_of(top));
    place[plane] = fma(sum(), power == 1 ? less : less * less, own);
    place[0] = top;
  }
};

// Shared by the epilogues: a finished tile as distances in shared memory, of which thread n takes
// row n / 4, columns 16 u + 4 (n % 4) + e as value 4 u + e. With 80 columns in a row of the tile
// neither access meets a bank twice.
template <class T>
struct RowView {
  using Acc = typename Accumulation<T>::type;
  using Loop = Distances<T>;
  static constexpr int TILE = Loop::TILE, WIDTH = 80, SIZE = Unit<Acc>::SIZE;
  static constexpr int CHUNK_K = sizeof(Acc) == 8 ? 4 : 8;  // temperatures at a time
  static constexpr int SHARED =
      Loop::SHARED + static_cast<int>(sizeof(Acc)) *
                         (TILE * WIDTH + (2 * CHUNK_K + 1) * TILE + CHUNK_K + 8 * CHUNK_K * TILE);

  const ForceParams& p;
  int g, i, k0;
  Acc *tile, *terms, *factors;  // terms [2][CHUNK_K][TILE], of columns, then their weights
  Acc* running;  // [6][CHUNK_K][TILE], of rows, behind it their log-sum-exps [2][CHUNK_K][TILE]

  __device__ RowView(const ForceParams& params, int group, int row, int first_k,
                     unsigned char* shared)
      : p(params),
        g(group),
        i(row),
        k0(first_k),
        tile(reinterpret_cast<Acc*>(shared + Loop::SHARED)) {
    terms = tile + TILE * WIDTH, factors = terms + (2 * CHUNK_K + 1) * TILE;
    running = factors + CHUNK_K;
  }
  __device__ int row() const { return i + static_cast<int>(threadIdx.x) / 4; }
  __device__ int column(const SideTiles& t, int c) const {
    return t.j + c / 4 * 16 + static_cast<int>(threadIdx.x) % 4 * 4 + c % 4;
  }
  // Of the thread's row and temperature k0 + k: of each side, of the squares.
  __device__ RunningSum<Acc> sum_of(int k, int kind = 0) const {
    return {running + (2 * kind * CHUNK_K + k) * TILE + static_cast<int>(threadIdx.x) / 4,
            CHUNK_K * TILE};
  }
  // Of each side the maximum over points that do not equal the row, in place of the squares.
  __device__ RunningSum<Acc> apart_of(int k, int side) const {
    return {sum_of(k, 2).place + side * CHUNK_K * TILE, 0};
  }
  __device__ int temperatures() const { return min(p.K - k0, CHUNK_K); }

  // Log-sum-exps of the columns, of temperatures k0 ..: `lse` [2, K, G, P]. A barrier before they
  // are read.
  __device__ void stage_terms(const void* lse, const SideTiles& t) {
    const int64_t planes = static_cast<int64_t>(p.K) * p.G * p.P;
#pragma unroll 1
    for (int n = static_cast<int>(threadIdx.x); n < 2 * CHUNK_K * TILE; n += Loop::THREADS) {
      const int k = n / TILE % CHUNK_K;
      if (k >= temperatures()) continue;
      const int64_t place =
          (static_cast<int64_t>(k0 + k) * p.G + g) * p.P + min(t.j + n % TILE, p.P - 1);
      terms[n] = static_cast<const Acc*>(lse)[place + (n < CHUNK_K * TILE ? 0 : planes)];
    }
  }
  // The log-sum-exps of the block's rows, behind `running`.
  __device__ void stage_rows() {
    const int64_t count = p.all_rows ? p.P : p.rows,
                  planes = static_cast<int64_t>(p.K) * p.G * count;
    for (int n = static_cast<int>(threadIdx.x); n < 2 * CHUNK_K * TILE; n += Loop::THREADS) {
      const int k = n / TILE % CHUNK_K;
      if (k >= temperatures()) continue;
      const int64_t place = (static_cast<int64_t>(k0 + k) * p.G + g) * count +
                            min(i + n % TILE, static_cast<int>(count) - 1);
      running[6 * CHUNK_K * TILE + n] =
          static_cast<const Acc*>(p.lse_rows)[place + (n < CHUNK_K * TILE ? 0 : planes)];
    }
  }
  __device__ Acc row_lse(int part, int k) const {
    return running[((6 + part) * CHUNK_K + k) * TILE + static_cast<int>(threadIdx.x) / 4];
  }
  __device__ void stage_weights(const SideTiles& t) {
    const int n = static_cast<int>(threadIdx.x);
    if (n >= TILE) return;
    const int64_t place = static_cast<int64_t>(g) * p.P + min(t.j + n, p.P - 1);
    terms[2 * CHUNK_K * TILE + n] =
        p.weight == nullptr ? Acc(1) : static_cast<const Acc*>(p.weight)[place];
  }
  __device__ void stage_factors() {
    const int n = static_cast<int>(threadIdx.x);
    if (n < temperatures()) factors[n] = factor(p, k0 + n, unit_scale<Acc>(p.scale, g));
  }
  __device__ void values(Acc (&x)[16], const Acc* source) const {
#pragma unroll
    for (int c = 0; c < 16; c += SIZE) {
      const Unit<Acc> unit =
          load_unit(source + c / 4 * 16 + static_cast<int>(threadIdx.x) % 4 * 4 + c % 4);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) x[c + e] = unit.v[e];
    }
  }
  __device__ Acc weight(int c) const {
    return terms[2 * CHUNK_K * TILE + c / 4 * 16 + static_cast<int>(threadIdx.x) % 4 * 4 + c % 4];
  }
  __device__ void weights(Acc (&x)[16]) const { values(x, terms + 2 * CHUNK_K * TILE); }

  // Calls f(c, a_ij) for the thread's columns and the chunk's temperature k.
  template <class F>
  __device__ void affinities(int row, Acc own, Acc own_lost, int k, const SideTiles& t, F f) const {
    const Acc factor = factors[k];
    const Acc* source = terms + k * TILE + static_cast<int>(threadIdx.x) % 4 * 4;
#pragma unroll
    for (int c = 0; c < 16; c += SIZE) {
      const Unit<Acc> value = load_unit(source + c / 4 * 16 + c % 4), d = row_unit(c);
      const Unit<Acc> lost = load_unit(source + CHUNK_K * TILE + c / 4 * 16 + c % 4);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) {
        const Acc a = log_affinity(d.v[e], factor, own, own_lost, value.v[e], lost.v[e], p);
        f(c + e, column(t, c + e) == row ? static_cast<Acc>(p.self_logit) : a);
      }
    }
  }

  // The tile's distances; a barrier publishes what was staged, too.
  __device__ void publish(const Acc (&squares)[4][4]) {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        tile[(ty + 16 * r) * WIDTH + tx + 16 * c] = distance(squares[r][c], p);
    }
    __syncthreads();
  }
  __device__ void distances(Acc (&d)[16], const Acc (&squares)[4][4]) {
    publish(squares);
    values(d, row_of_tile());
  }
  __device__ const Acc* row_of_tile() const {
    return tile + static_cast<int>(threadIdx.x) / 4 * WIDTH;
  }
  __device__ Acc of_row(int c) const {
    return row_of_tile()[c / 4 * 16 + static_cast<int>(threadIdx.x) % 4 * 4 + c % 4];
  }
  __device__ Unit<Acc> row_unit(int c) const {
    return load_unit(row_of_tile() + c / 4 * 16 + static_cast<int>(threadIdx.x) % 4 * 4 + c % 4);
  }

  // Runs `epilogue` over the tiles.
  template <class Epilogue>
  __device__ void run(const SideTiles& tiles, Epilogue& epilogue, unsigned char* shared) {
    const T* x = static_cast<const T*>(p.x) + static_cast<int64_t>(g) * p.P * p.D;
    Loop::run(x, p.P, p.D, tiles, epilogue, reinterpret_cast<Acc*>(shared));
  }
};

// out [splits, G, rows].
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

// Of `rows` points over the first `negatives` points: lse_rows [2, K, G, rows], or with splits
// their parts shift and sums [splits, K, G, rows].
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
          sum += exponential(fma(-f, d[c], -shift));  // the product is not rounded
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

// shift and sums [splits, 2, K, G, rows]; with rms over all points squares [splits, K, G, P], the
// logs of the sums of (d A)^2 in float64; with separate apart [splits, 2, K, G, rows], like shift
// of the points that do not equal the row.
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
