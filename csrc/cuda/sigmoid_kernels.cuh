// The tile kernels of the sigmoid family, over the loops of pair_reduce and pair_weight. They work
// in base 2 with t = log2(e) sign (s + row_bias_i).
//
// sigmoid_reduce sums log2(1 + 2^t) over the candidate columns of each row, and takes maxima of t.
// Results are partial ones in private slots. There are no atomics, and every run gives the same
// bits. One block serves a pair of super tiles: super_rows rows x super_rows columns of one group.
// A row's statistics stay in shared memory along a strip of tiles. Flops: 2 M N D, and M N
// exponentials with 10 multiply-adds each. Bytes: tiles from L2, and 4 bytes of slots per row and
// super tile. Predicted: as pair_reduce with two sets, less 10 % at D = 256 for the polynomials.
//
// sigmoid_weight computes a panel of the gradient weights, W_ij = weight_i / (1 + 2^-t_ij), 0 where
// j is no candidate of i, and its row sums by tile. Panel, blocks, flops, bytes and prediction are
// those of pair_weight.
#pragma once

#include "pair_weight.cuh"
#include "sigmoid.h"

namespace fused_contrastive {

// log2(1 + 2^t) is max(t, 0) plus the logarithm of 1 + e with e = 2^-|t|. A minimax polynomial
// gives the latter to a relative error of 3e-8.
__device__ inline float softplus_2(float t) {
  const float e = exp_2(-fabsf(t));
  float p = fmaf(e, 0.0075491759531384945f, -0.042567034457811722f);
  p = fmaf(p, e, 0.11285614325531375f);
  p = fmaf(p, e, -0.19711892200531551f);
  p = fmaf(p, e, 0.27564138656638715f);
  p = fmaf(p, e, -0.35840846489352853f);
  p = fmaf(p, e, 0.48069295621806332f);
  p = fmaf(p, e, -0.72134020795076748f);
  p = fmaf(p, e, 1.4426949974347122f);
  return fmaf(p, e, fmaxf(t, 0.0f));
}
__device__ inline double softplus_2(double t) {
  return fmax(t, 0.0) + log1p(exp_2(-fabs(t))) * LOG2E;
}

// 1 / (1 + 2^-t). It is 0 from where 2^-t overflows.
__device__ inline float sigmoid_2(float t) { return rough_inverse(1.0f + exp_2(-t)); }
__device__ inline double sigmoid_2(double t) { return 1.0 / (1.0 + exp_2(-t)); }

// Turns the products s into t: scaled, with the bias of each of the lane's rows, -inf where a pair
// is no candidate.
template <class P, bool KEYED, class Acc = typename P::Acc>
__device__ inline void signed_logits(Acc (&s)[P::MB][P::NB][2], const Problem& p, int g, Acc scale2,
                                     const Acc (&shift)[P::MB], int i, int j) {
#pragma unroll
  for (int m = 0; m < P::MB; ++m) {
#pragma unroll
    for (int n = 0; n < P::NB; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) s[m][n][e] = scaled<P>(s[m][n][e], scale2, shift[m]);
    }
  }
  if (!needs_mask<P::BM, P::BN>(p, i, j)) return;
  logits<P, KEYED, true>(s, p, g, scale2, i + P::warp_row(), j + P::warp_column(), true, false);
}

// The sum over the lanes that hold parts of a row.
template <class Acc>
__device__ inline Acc row_sum(Acc x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Parts of the rows' statistics, one per column of warps: [WARPS_N][BM] in shared memory.
template <class P>
struct RowParts {
  using Acc = typename P::Acc;
  static constexpr int SIZE = P::WARPS_N * P::BM, SHARED = SIZE * static_cast<int>(sizeof(Acc));
  Acc* parts;

  // The part of this lane's row m. Four lanes hold parts of the row, and the first one writes it.
  __device__ Acc& own(int m) const {
    const int warp = static_cast<int>(threadIdx.x) / 32 % P::WARPS_N;
    return parts[warp * P::BM + P::warp_row() + 8 * m + (lane_id() >> 2)];
  }
  __device__ static bool writes() { return (lane_id() & 3) == 0 && threadIdx.x < P::THREADS; }

  // Calls f(row, parts of that row) for the team's rows.
  template <class F>
  __device__ static void each(F f) {
    for (int place = P::team_thread(); place < P::TEAM_ROWS; place += P::TEAM)
      f(P::team_row() + place);
  }
};

// The tiles of one super tile, strip by strip.
template <int BM, int BN>
struct Strips {
  int g, i, j, i_end, j_begin, j_end;

  __device__ bool valid() const { return i < i_end; }
  __device__ bool strip_end() const { return j + BN >= j_end; }
  __device__ void next() {
    const bool last = strip_end();
    j = last ? j_begin : j + BN;
    i = last ? i + BM : i;
  }
};

template <class P, bool KEYED>
struct SigmoidReduce {
  using Acc = typename P::Acc;
  static constexpr int SHARED = 2 * RowParts<P>::SHARED;

  const SigmoidReduceParams& r;
  Acc scale2;
  RowParts<P> sums, maxima;
  int super;  // the super tile of columns

  __device__ void clear() const {
    if (!RowParts<P>::writes()) return;
#pragma unroll
    for (int m = 0; m < P::MB; ++m) sums.own(m) = 0, maxima.own(m) = -infinity(Acc(0));
  }

  __device__ void operator()(Acc (&s)[P::MB][P::NB][2], const Strips<P::BM, P::BN>& t,
                             const unsigned char*) const {
    const Problem& p = r.p;
    Acc shift[P::MB];
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
      const int row = min(t.i + P::warp_row() + 8 * m + (lane_id() >> 2), p.M - 1);
      const Acc* bias = static_cast<const Acc*>(r.row_bias) + static_cast<int64_t>(t.g) * p.M;
      shift[m] = r.row_bias == nullptr ? Acc(0) : bias[row] * (Acc(LOG2E) * Acc(r.sign));
    }
    signed_logits<P, KEYED>(s, p, t.g, scale2, shift, t.i, t.j);
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
      Acc sum = 0;
#pragma unroll
      for (int n = 0; n < P::NB; ++n) sum += softplus_2(s[m][n][0]) + softplus_2(s[m][n][1]);
      sum = row_sum(sum);
      if (RowParts<P>::writes()) sums.own(m) += sum;
    }
    if (r.extrema) add_maxima(s);
    if (t.strip_end()) finish_strip(t);
  }

  __device__ void add_maxima(const Acc (&s)[P::MB][P::NB][2]) const {
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
      Acc top = -infinity(Acc(0));
#pragma unroll
      for (int n = 0; n < P::NB; ++n) top = fmax(top, fmax(s[m][n][0], s[m][n][1]));
      top = fmax(top, shuffle_xor(top, 1));
      top = fmax(top, shuffle_xor(top, 2));
      if (RowParts<P>::writes()) maxima.own(m) = fmax(maxima.own(m), top);
    }
  }

  // Writes the warps' parts into the slot.
  __device__ void finish_strip(const Strips<P::BM, P::BN>& t) const {
    P::sync();
    const int64_t plane = static_cast<int64_t>(r.p.G) * r.p.M;
    Acc* slot = static_cast<Acc*>(r.slots) + super * plane + static_cast<int64_t>(t.g) * r.p.M;
    Acc* top_slot = slot + ceil_div(r.p.N, r.super_rows) * plane;
    RowParts<P>::each([&](int row) {
      if (t.i + row >= r.p.M) return;
      Acc sum = sums.parts[row], top = maxima.parts[row];
      for (int w = 1; w < P::WARPS_N; ++w) {
        sum += sums.parts[w * P::BM + row];
        top = fmax(top, maxima.parts[w * P::BM + row]);
      }
      slot[t.i + row] = sum;
      if (r.extrema) top_slot[t.i + row] = top;
    });
    P::sync();
    clear();
  }
};

template <class P>
using SigmoidLoop = PairLoop<P, 4>;

template <class P, bool KEYED>
__global__ void __launch_bounds__(SigmoidLoop<P>::THREADS, KEYED ? 1 : P::BLOCKS) sigmoid_reduce(
    const __grid_constant__ Arguments<SigmoidLoop<P>, SigmoidReduceParams> arguments) {
  using Acc = typename P::Acc;
  SHARED_MEMORY(shared);
  const SigmoidReduceParams& r = arguments.params;
  const Problem& p = r.p;
  const int supers_n = ceil_div(p.N, r.super_rows), pairs = ceil_div(p.M, r.super_rows) * supers_n;
  const int g = static_cast<int>(blockIdx.x) / pairs, pair = static_cast<int>(blockIdx.x) % pairs;
  const int i = pair / supers_n * r.super_rows, super_j = pair % supers_n,
            j = super_j * r.super_rows;
  Acc* parts = reinterpret_cast<Acc*>(shared + SigmoidLoop<P>::SHARED);
  const Acc scale2 = *static_cast<const Acc*>(p.scale) * (Acc(LOG2E) * Acc(r.sign));
  const SigmoidReduce<P, KEYED> epilogue{r, scale2, {parts}, {parts + RowParts<P>::SIZE}, super_j};
  epilogue.clear();
  const Strips<P::BM, P::BN> tiles{
      g, i, j, min(i + r.super_rows, p.M), j, min(j + r.super_rows, p.N)};
  SigmoidLoop<P>::run(arguments.sources, p, tiles, epilogue, shared);
}

template <class P>
void launch_sigmoid_reduce(const SigmoidReduceParams& r, Stream stream) {
  const int64_t blocks =
      static_cast<int64_t>(ceil_div(r.p.M, r.super_rows)) * ceil_div(r.p.N, r.super_rows) * r.p.G;
  const int shared = SigmoidLoop<P>::SHARED + SigmoidReduce<P, false>::SHARED;
  if (r.super_rows % P::BN != 0)
    throw std::runtime_error("sigmoid_reduce: super tiles of whole tiles");
  const Arguments<SigmoidLoop<P>, SigmoidReduceParams> arguments{
      typename SigmoidLoop<P>::Sources(r.p), r};
  launch(r.p.kind >= OTHER_KEY ? sigmoid_reduce<P, true> : sigmoid_reduce<P, false>, blocks,
         SigmoidLoop<P>::THREADS, shared, stream, arguments);
}

template <class P, bool KEYED>
struct SigmoidWeight {
  using Acc = typename P::Acc;
  using Tiles = typename Weight<P, KEYED>::Tiles;
  // Where in shared memory the parts begin.
  static constexpr int PARTS = weight_shared<P, KEYED>();
  // How many columns have one plane of `sums`.
  static constexpr int PLANE = sizeof(typename P::Element) == 8 ? 64 : 128;

  const SigmoidWeightParams& w;
  Weight<P, KEYED> panel;
  RowParts<P> parts;

  __device__ void operator()(Acc (&s)[P::MB][P::NB][2], const Tiles& t,
                             const unsigned char*) const {
    const Problem& p = w.p;
    Acc factor = 1;
    if (w.unit != nullptr) {
      const Acc largest = *static_cast<const Acc*>(w.unit);
      factor = largest > Acc(0) ? Acc(HALF_RANGE) / largest : Acc(0);
      if (largest != largest) factor = largest;
    }
    const Acc* row_terms =
        static_cast<const Acc*>(w.row_terms) + 2 * static_cast<int64_t>(t.g) * p.M;
    Acc shift[P::MB], weight[P::MB];
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
      const int row = min(t.i + P::warp_row() + 8 * m + (lane_id() >> 2), p.M - 1);
      shift[m] = row_terms[2 * row];
      weight[m] = row_terms[2 * row + 1] * factor;
    }
    signed_logits<P, KEYED>(s, p, t.g, panel.scale2, shift, t.i, t.j);
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
      Acc sum = 0;
#pragma unroll
      for (int n = 0; n < P::NB; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          s[m][n][e] = weight[m] * sigmoid_2(s[m][n][e]);
          sum += s[m][n][e];
        }
      }
      if (w.sums != nullptr) {
        sum = row_sum(sum);
        if (RowParts<P>::writes()) parts.own(m) = sum;
      }
    }
    if (w.sums != nullptr) store_sums(t);
    panel.template emit<false>(s, t.g, t.i, t.j);
  }

  __device__ void store_sums(const Tiles& t) const {
    P::sync();
    const int64_t plane = static_cast<int64_t>(w.p.G) * w.p.M;
    Acc* target =
        static_cast<Acc*>(w.sums) + t.j / PLANE * plane + static_cast<int64_t>(t.g) * w.p.M + t.i;
    RowParts<P>::each([&](int row) {
      if (t.i + row >= w.p.M) return;
      Acc sum = parts.parts[row];
      for (int warp = 1; warp < P::WARPS_N; ++warp) sum += parts.parts[warp * P::BM + row];
      target[row] = sum;
    });
  }
};

template <class P, bool KEYED>
__global__ void __launch_bounds__(WeightLoop<P>::THREADS,
                                  KEYED || sizeof(typename P::Element) == 4 ? 1 : P::BLOCKS)
    sigmoid_weight(
        const __grid_constant__ Arguments<WeightLoop<P>, SigmoidWeightParams> arguments) {
  using Acc = typename P::Acc;
  SHARED_MEMORY(shared);
  const SigmoidWeightParams& w = arguments.params;
  unsigned char* tile = WeightLoop<P>::PERSISTENT ? shared + WeightLoop<P>::SHARED : shared;
  Acc* parts = reinterpret_cast<Acc*>(shared + SigmoidWeight<P, KEYED>::PARTS);
  const Acc scale2 = *static_cast<const Acc*>(w.p.scale) * (Acc(LOG2E) * Acc(w.sign));
  const SigmoidWeight<P, KEYED> epilogue{w, {w, scale2, tile}, {parts}};
  WeightLoop<P>::run(arguments.sources, w.p, typename Weight<P, KEYED>::Tiles(w), epilogue, shared);
}

template <class P>
void launch_sigmoid_weight(const SigmoidWeightParams& w, Stream stream) {
  const int64_t tiles =
      static_cast<int64_t>(ceil_div(w.p.M, P::BM)) * ceil_div(w.p.N, P::BN) * w.p.G;
  const int64_t blocks =
      WeightLoop<P>::PERSISTENT ? min(checked_blocks(tiles), multiprocessors()) : tiles;
  const Arguments<WeightLoop<P>, SigmoidWeightParams> arguments{
      typename WeightLoop<P>::Sources(w.p), w};
  launch(w.p.kind >= OTHER_KEY ? sigmoid_weight<P, true> : sigmoid_weight<P, false>, blocks,
         WeightLoop<P>::THREADS, weight_shared<P, false>() + RowParts<P>::SHARED, stream,
         arguments);
}

template <class P>
constexpr SigmoidKernels sigmoid_kernels() {
  return {launch_sigmoid_reduce<P>, launch_sigmoid_weight<P>};
}

}  // namespace fused_contrastive
