// The force family for groups that fit into one block's shared memory: one launch, with a block per
// group.
//
//   force_group            all of force_forward
//   force_group_gradient   distance_gradient
//
// The distances of all pairs that are needed lie in shared memory, [P, stride]. Where nothing asks
// for more these are the rows i < rows alone, and only tiles at or above the diagonal are computed.
// Everything after that goes by rows, a warp each, with lanes over the columns. The rows'
// log-sum-exps, shifts and sums pass through the outputs. Weights replace the distances of their
// rows, or with `separate` lie in a panel of 64 rows. They multiply differences of coordinates, in
// tiles of 64 x 64.
//
// Flops: 3 P^2 D / 2 of distances (3 rows P D where that is less), 3 rows P D of products, and 3 or
// 4 exponentials per pair and temperature. Bytes: x three times, mostly from L2. Shared memory: 4 P
// (P + 8) + 20 KiB, which is 86 KiB at P = 128: two blocks on an SM of sm_90 and sm_100, one on
// sm_80, sm_86 and sm_120. P may be up to 228 on sm_90; float64 takes 8 P (P + 8) + 37 KiB.
// Predicted on one H200: 256 groups of 128 points in 256 dimensions with 5 temperatures take 0.17
// ms, at 65 % of the instruction rate.
#pragma once

#include "force_product.cuh"

namespace fused_contrastive {

// The tiles at or above the diagonal whose rows begin before `rows`.
struct UpperTiles {
  int i, j, rows, points;

  __device__ bool valid() const { return i < rows; }
  __device__ void next() {
    j += 64;
    if (j < points) return;
    i += 64;
    j = i;
  }
};

// Each lane has COLUMNS columns of a row, so that there are 32 COLUMNS points at most.
template <class T, int COLUMNS>
struct Group {
  using Acc = typename Accumulation<T>::type;
  using Loop = Distances<T>;
  static constexpr int TILE = Loop::TILE, THREADS = Loop::THREADS;
  static_assert(Coordinates<T>::SHARED <= Loop::SHARED, "one after the other");

  // A multiple of 4, and odd in units of 4: columns of the matrix lie in different banks.
  static __host__ __device__ int stride(int P) { return 4 * (ceil_div(P, 4) | 1); }
  static constexpr int PARTS = 2 * WARPS * static_cast<int>(sizeof(double));
  static __host__ __device__ bool apart(const ForceParams& p) { return p.separate && p.K > 1; }
  static int64_t shared_bytes(const ForceParams& p) {
    const int64_t elements = static_cast<int64_t>(p.P + (apart(p) ? TILE : 0)) * stride(p.P);
    return Loop::SHARED + PARTS + elements * static_cast<int64_t>(sizeof(Acc));
  }

  const ForceParams& p;
  // `width` is the number of elements in a row of d.
  int g, width;
  Acc* stages;
  double* parts;  // [2][WARPS]
  Acc *d, *panel;

  __device__ Group(const ForceParams& params, unsigned char* shared)
      : p(params),
        g(static_cast<int>(blockIdx.x)),
        width(stride(params.P)),
        stages(reinterpret_cast<Acc*>(shared)),
        parts(reinterpret_cast<double*>(shared + Loop::SHARED)),
        d(reinterpret_cast<Acc*>(shared + Loop::SHARED + PARTS)),
        panel(d + params.P * width) {}
  __device__ Coordinates<T> coordinates() const { return {points(), p.P, p.D, width, stages}; }
  __device__ const T* points() const {
    return static_cast<const T*>(p.x) + static_cast<int64_t>(g) * p.P * p.D;
  }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }

  // The epilogue of the tile loop.
  __device__ void operator()(const Acc (&squares)[4][4], const UpperTiles& t) {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int i = t.i + ty + 16 * r, j = t.j + tx + 16 * c;
        if (i >= p.P || j >= p.P) continue;
        const Acc value = distance(squares[r][c], p);
        d[i * width + j] = value;
        if (t.i != t.j) d[j * width + i] = value;
      }
    }
  }
  __device__ void distances(int rows) {
    Loop::run(points(), p.P, p.D, UpperTiles{0, 0, rows, p.P}, *this, stages);
  }

  // Stores the given scale, or the mean of all distances.
  __device__ Acc scale() {
    Acc* target = static_cast<Acc*>(p.scale) + g;
    Acc value;
    if (p.given_scale != nullptr) {
      value = static_cast<const Acc*>(p.given_scale)[g];
    } else {
      double sum = 0;
      for (int i = warp(); i < p.P; i += WARPS) {
        Acc row = 0;
        for (int j = lane_id(); j < p.P; j += 32) row += d[i * width + j];
        sum += warp_sum(row);
      }
      double* sums = reinterpret_cast<double*>(stages);
      if (lane_id() == 0) sums[warp()] = sum;
      __syncthreads();
      double total = 0;
      for (int w = 0; w < WARPS; ++w) total += sums[w];
      value = static_cast<Acc>(total / (static_cast<double>(p.P) * p.P));
    }
    if (threadIdx.x == 0) *target = value;
    return value == Acc(0) ? Acc(1) : value;
  }

  // Calls f(c, j) for the columns of this lane.
  template <class F>
  __device__ void for_columns(F f) const {
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      if (32 * c < p.P && 32 * c + lane_id() < p.P) f(c, 32 * c + lane_id());
    }
  }

  // Computes log sum_j exp(-f d_ij) over the first `count` points.
  __device__ LogOfSum<Acc> log_sum(int i, int count, Acc f) const {
    const Acc* row = d + i * width;
    Acc maximum = -infinity(Acc(0)), sum = 0;
    const auto left_out = [&](int j) { return j >= count || (p.mask && i == j); };
    for_columns([&](int, int j) {
      maximum = fmax(maximum, left_out(j) ? -infinity(Acc(0)) : -f * row[j]);
    });
    maximum = warp_max(maximum);
    const Acc shift = shift_of(maximum);
    for_columns([&](int, int j) {
      if (!left_out(j)) sum += exponential(fma(-f, row[j], -shift));  // The product is not rounded.
    });
    return {maximum, warp_sum(sum)};
  }

  // Computes lse_rows and lse_cols. It ends with a barrier, behind which all threads see them.
  __device__ void log_sums(Acc scale) const {
    const int row_count = p.all_rows ? p.P : p.rows, column_count = p.all_rows ? 0 : p.P;
#pragma unroll 1
    for (int k = 0; k < p.K; ++k) {
      const Acc f = factor(p, k, scale);
      const int64_t plane = static_cast<int64_t>(k) * p.G + g;
#pragma unroll 1
      for (int n = warp(); n < row_count + column_count; n += WARPS) {
        const bool is_row = n < row_count;
        const int i = is_row ? n : n - row_count;
        const LogOfSum<Acc> lse = log_sum(i, is_row ? p.P : p.rows, f);
        const int64_t count = is_row ? row_count : p.P;
        if (lane_id() == 0) {
          lse.store(is_row ? p.lse_rows : p.lse_cols, static_cast<int64_t>(p.K) * p.G * count,
                    plane * count + i);
        }
      }
    }
    __syncthreads();
  }

  // One row of the affinities of one temperature.
  struct Row {
    const ForceParams& p;
    const Acc *d, *cols;
    int64_t cols_plane;
    Acc f, own, own_lost;
    int i;

    __device__ Acc log_a(int j) const {
      if (i == j) return static_cast<Acc>(p.self_logit);
      return log_affinity(d[j], f, own, own_lost, cols[j], cols[cols_plane + j], p);
    }
  };
  __device__ const Acc* columns_of(int k) const {
    return static_cast<const Acc*>(p.all_rows ? p.lse_rows : p.lse_cols) +
           (static_cast<int64_t>(k) * p.G + g) * p.P;
  }
  __device__ Row row(int i, int k, Acc f) const {
    const int64_t planes = static_cast<int64_t>(p.K) * p.G, count = p.all_rows ? p.P : p.rows;
    const Acc* lse =
        static_cast<const Acc*>(p.lse_rows) + (static_cast<int64_t>(k) * p.G + g) * count + i;
    return {p, d + i * width, columns_of(k), planes * p.P, f, lse[0], lse[planes * count], i};
  }
  __device__ Acc weight(int j) const {
    return p.weight == nullptr
               ? Acc(1)
               : static_cast<const Acc*>(p.weight)[static_cast<int64_t>(g) * p.P + j];
  }
  // Where shift and sums of a row are. Those of the positive side lie `sides` elements on.
  __device__ int64_t place(int i, int k) const {
    return (static_cast<int64_t>(k) * p.G + g) * p.rows + i;
  }
  __device__ int64_t sides() const { return static_cast<int64_t>(p.K) * p.G * p.rows; }

  // Computes shift, sums and log_norm. It ends with a barrier.
  __device__ void affinities(Acc scale) const {
#pragma unroll 1
    for (int k = 0; k < p.K; ++k) {
      const Acc f = factor(p, k, scale);
      double norm = -infinity(0.0), norm_sum = 0;
#pragma unroll 1
      for (int i = warp(); i < (p.rms ? p.P : p.rows); i += WARPS) {
        const Row r = row(i, k, f);
        Acc a[COLUMNS], top[2] = {-infinity(Acc(0)), -infinity(Acc(0))}, sum[2] = {};
        for_columns([&](int c, int j) {
          a[c] = r.log_a(j);
          top[0] = j < p.negatives ? fmax(top[0], a[c]) : top[0];
          top[1] = j < p.negatives ? top[1] : fmax(top[1], a[c]);
        });
        top[0] = warp_max(top[0]), top[1] = warp_max(top[1]);
        for_columns([&](int c, int j) {
          const int side = j >= p.negatives;
          const Acc e = exponential(a[c] - shift_of(side ? top[1] : top[0]));
          sum[0] = side ? sum[0] : fma(e, weight(j), sum[0]);
          sum[1] = side ? fma(e, weight(j), sum[1]) : sum[1];
        });
        sum[0] = warp_sum(sum[0]), sum[1] = warp_sum(sum[1]);
        if (p.rms) {
          Acc moment_top = -infinity(Acc(0)), moments = 0;
          for_columns([&](int c, int j) {
            moment_top = r.d[j] == Acc(0) ? moment_top : fmax(moment_top, a[c]);
          });
          moment_top = warp_max(moment_top);
          for_columns([&](int c, int j) { moments += moment(r.d[j], a[c], moment_top); });
          merge_log(norm, norm_sum, log_moments(moment_top, warp_sum(moments)));
        } else if (p.separate) {
          Acc exponent = -infinity(Acc(0));  // the largest exponent of a term
          for_columns([&](int c, int j) {
            const Acc other = j < p.negatives ? top[1] : top[0];
            exponent = r.d[j] == Acc(0) ? exponent : fmax(exponent, a[c] + other);
          });
          norm = larger(norm, static_cast<double>(warp_max(exponent)));
        }
        if (lane_id() != 0 || i >= p.rows) continue;
        Acc *shift = static_cast<Acc*>(p.shift) + place(i, k),
            *sums = static_cast<Acc*>(p.sums) + place(i, k);
        shift[0] = top[0], shift[sides()] = top[1], sums[0] = sum[0], sums[sides()] = sum[1];
      }
      if (p.rms || p.separate) {
        if (lane_id() == 0) parts[warp()] = norm, parts[WARPS + warp()] = norm_sum;
        __syncthreads();
      }
      if (threadIdx.x == 0) {
        const int64_t plane = static_cast<int64_t>(k) * p.G + g;
        const double log_norm = p.rms || p.separate ? log_norm_of(parts, scale, p) : 0.0;
        static_cast<Acc*>(p.log_norm)[plane] = static_cast<Acc>(log_norm);
        static_cast<double*>(p.wide)[plane] = log_norm;
      }
      __syncthreads();
    }
  }

  // Adds up the weights of row i over temperatures [k, k_end) into `target`. They are 0 for points
  // that equal the row, and behind the last column. Each lane prepares one temperature, for all.
  __device__ void weights(int i, int k, int k_end, Acc* target) const {
    Acc total[COLUMNS] = {};
#pragma unroll 1
    for (; k < k_end; k += 32) {
      const int own_k = min(k + lane_id(), k_end - 1);
      const Row own = row(i, own_k, factor(p, own_k, unit_scale<Acc>(p.scale, g)));
      const Acc* shift = static_cast<const Acc*>(p.shift) + place(i, own_k);
      const Acc* sums = static_cast<const Acc*>(p.sums) + place(i, own_k);
      const double log_norm =
          static_cast<const double*>(p.wide)[static_cast<int64_t>(own_k) * p.G + g];
      const ForceLevel<Acc> of_negative(shift[sides()], -sums[sides()], log_norm);
      const ForceLevel<Acc> of_positive(shift[0], sums[0], log_norm);
#pragma unroll 1
      for (int lane = 0; lane < min(32, k_end - k); ++lane) {
        const Row r{p,
                    own.d,
                    columns_of(k + lane),
                    own.cols_plane,
                    shuffle(own.f, lane),
                    shuffle(own.own, lane),
                    shuffle(own.own_lost, lane),
                    i};
        const Acc by_negative = shuffle(of_negative.coefficient, lane);
        const Acc by_positive = shuffle(of_positive.coefficient, lane);
        const Acc negative = shuffle(of_negative.level, lane),
                  positive = shuffle(of_positive.level, lane);
        for_columns([&](int c, int j) {
          const bool side = j >= p.negatives;
          const Acc e = exponential(r.log_a(j) - (side ? positive : negative));
          total[c] = fma(e, side ? by_positive : by_negative, total[c]);
        });
      }
    }
    const Acc* row = d + i * width;
    for_columns(
        [&](int c, int j) { target[j] = row[j] == Acc(0) ? Acc(0) : total[c] * weight(j); });
    if (p.P + lane_id() < width) target[p.P + lane_id()] = 0;  // fewer than 32
  }

  // Puts the weights of row i in the gradient in place of its distances.
  __device__ void inverses(int i) const {
    const Acc g2 = Acc(-2) * static_cast<const Acc*>(p.upstream)[g];
    Acc* row = d + i * width;
#pragma unroll 1
    for (int j = lane_id(); j < width; j += 32)
      row[j] = j < p.P && row[j] != Acc(0) ? g2 / row[j] : Acc(0);
  }
};

// Of groups with more than 128 points one fits into a multiprocessor.
template <class T, int COLUMNS>
__global__ void __launch_bounds__(256, sizeof(T) == 8 || COLUMNS > 4 ? 1 : 2)
    force_group(const __grid_constant__ ForceParams p) {
  SHARED_MEMORY(shared);
  using Kernel = Group<T, COLUMNS>;
  Kernel group(p, shared);
  group.distances(p.all_rows || p.given_scale == nullptr ? p.P : p.rows);
  const auto scale = group.scale();
  group.log_sums(scale);
  group.affinities(scale);
#pragma unroll 1
  for (int s = 0, i0 = 0; s < (Kernel::apart(p) ? p.K : 1);) {
    auto* w = Kernel::apart(p) ? group.panel : group.d + i0 * group.width;
#pragma unroll 1
    for (int i = Kernel::warp(); i < min(Kernel::TILE, p.rows - i0); i += WARPS) {
      group.weights(i0 + i, s, Kernel::apart(p) ? s + 1 : p.K, w + i * group.width);
    }
    __syncthreads();
    const int64_t row = (static_cast<int64_t>(s) * p.G + group.g) * p.rows + i0;
    group.coordinates().multiply(w, i0, min(Kernel::TILE, p.rows - i0),
                                 static_cast<typename Kernel::Acc*>(p.out) + row * p.D);
    i0 += Kernel::TILE;
    if (i0 < p.rows) continue;
    i0 = 0;
    ++s;
  }
}

template <class T>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2)
    force_group_gradient(const __grid_constant__ ForceParams p) {
  SHARED_MEMORY(shared);
  using Kernel = Group<T, 4>;
  Kernel group(p, shared);
  group.distances(p.P);
  for (int i = Kernel::warp(); i < p.P; i += WARPS) group.inverses(i);
  __syncthreads();
  for (int i0 = 0; i0 < p.P; i0 += Kernel::TILE) {
    const int64_t row = static_cast<int64_t>(group.g) * p.P + i0;
    group.coordinates().multiply(group.d + i0 * group.width, i0, min(Kernel::TILE, p.P - i0),
                                 static_cast<T*>(p.out) + row * p.D);
  }
}

}  // namespace fused_contrastive
