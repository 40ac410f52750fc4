// What the passes over the pairs of force_rows.cuh and force_weights.cuh share: the tiles of a
// block, running sums in shared memory, and the view of a block's rows that every epilogue works
// on.
#pragma once

#include "force_distance.cuh"

namespace fused_contrastive {

// Tiles of columns: first those of the first `boundary` columns, then those up to `end`, so that a
// tile has columns of one side.
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

// The sum of exponentials of a row so far, relative to its maximum, in shared memory. The four
// threads of a row add to it together. Two uses need a barrier between them. Plane 0 has the
// maximum alone.
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
  // The largest of the stored maximum and the threads' own.
  __device__ Acc top(Acc own) const {
    own = fmax(own, maximum());
    own = fmax(own, shuffle_xor(own, 1));
    return fmax(own, shuffle_xor(own, 2));
  }
  __device__ void raise(Acc own) const {
    own = top(own);
    if (writes()) place[0] = own;
  }
  // Adds the threads' own sums of exp(x - top)^power.
  __device__ void add(Acc top, Acc own, int power = 1) const {
    own += shuffle_xor(own, 1);
    own += shuffle_xor(own, 2);
    if (!writes()) return;
    const Acc less = exponential(maximum() - shift_of(top));
    place[plane] = fma(sum(), power == 1 ? less : less * less, own);
    place[0] = top;
  }
};

// What the epilogues share: a finished tile as distances in shared memory. Thread n takes row n / 4
// and columns 16 u + 4 (n % 4) + e as value 4 u + e. A row of the tile has 80 columns, so that
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
  // `terms` is [2][CHUNK_K][TILE], of the columns; their weights follow.
  Acc *tile, *terms, *factors;
  // `running` is [6][CHUNK_K][TILE], of the rows. Their log-sum-exps [2][CHUNK_K][TILE] follow.
  Acc* running;

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
  // The running sums of the thread's row and temperature k0 + k: of each side, and of the squares.
  __device__ RunningSum<Acc> sum_of(int k, int kind = 0) const {
    return {running + (2 * kind * CHUNK_K + k) * TILE + static_cast<int>(threadIdx.x) / 4,
            CHUNK_K * TILE};
  }
  // For each side the maximum over points that do not equal the row, in place of the squares.
  __device__ RunningSum<Acc> apart_of(int k, int side) const {
    return {sum_of(k, 2).place + side * CHUNK_K * TILE, 0};
  }
  __device__ int temperatures() const { return min(p.K - k0, CHUNK_K); }

  // Stages the log-sum-exps of the columns, of temperatures k0 .., from `lse` [2, K, G, P]. A
  // barrier must follow before they are read.
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

  // Publishes the tile's distances. The barrier publishes what was staged, too.
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

}  // namespace fused_contrastive
