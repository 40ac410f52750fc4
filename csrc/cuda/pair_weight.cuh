// pair_weight: a panel of the gradient weights, for library products with the embeddings:
//   W_ij = weight_i exp2(s2_ij - level_i) [+ weight_j exp2(s2_ij - level_j)],  0 where j is no candidate of i.
// Terms are pairs (level, weight). Panel [G, M, ld], ld = N rounded up to 16 elements. MIRROR (one set, the whole
// matrix): tiles at or above the diagonal are computed and written at both places. One block per tile; BAND rows of
// tiles in turn, so that operands stay in L2. Tiles leave through shared memory in rows of 16-byte stores.
//
// Where the levels of a warp's tile are close (SPREAD octaves) both terms share one exponential.
// Flops: 2 M N D (MIRROR: N^2 D), M N (half) exponentials. Bytes: M N elements written.
// Predicted: as pair_reduce for D >= 256, less the exposed epilogue of one tile per block (hidden by the second block
// of an SM); never above the copy rate: at 16 bit 4.3 TB/s of W are 2.15e12 elements/s, 2 D of them in flops: D >= 200
// to be limited by products.
#pragma once

#include "logits.cuh"

namespace fused_contrastive {

constexpr double SPREAD = 34.0;        // octaves: what flushes to zero is below 2^-92 of its row's weight
constexpr double HALF_RANGE = 8192.0;  // float16 panels hold W HALF_RANGE / unit: at most twice that in magnitude
constexpr int BAND = 8;

struct OneTile {
  int i, j;
  __device__ bool valid() const { return i >= 0; }
  __device__ void next() { i = -1; }
};

template <class P, bool KEYED>
struct Weight {
  using Acc = typename P::Acc;
  using Element = typename P::Element;
  static constexpr int VECTOR = 16 / static_cast<int>(sizeof(Element));
  static constexpr int LEADING = P::BN + VECTOR;  // of the tile in shared memory: rows in different banks
  static constexpr int SHARED = P::BM * LEADING * static_cast<int>(sizeof(Element));

  const WeightParams& w;
  int g;
  Acc scale2;
  unsigned char* shared;

  __device__ void operator()(Acc (&s)[P::MB][P::NB][2], const OneTile& t, const unsigned char*) {
    const Problem& p = w.p;
    logits<KEYED>(s, p, g, scale2, t.i + P::warp_row(), t.j + P::warp_column(), needs_mask<P::BM, P::BN>(p, t.i, t.j),
                  false);
    weigh(s, t);
    emit<false>(s, t.i, t.j);
    if (w.mirror && t.i != t.j) emit<true>(s, t.j, t.i);
  }

  // The tile (TRANSPOSED: its transpose) to rows i.., columns j.. of the panel, through shared memory.
  template <bool TRANSPOSED>
  __device__ void emit(const Acc (&s)[P::MB][P::NB][2], int i, int j) const {
    Element* tile = reinterpret_cast<Element*>(shared);
    const int row = P::warp_row() + (lane_id() >> 2), column = P::warp_column() + 2 * (lane_id() & 3);
    Element* own = tile + (TRANSPOSED ? column * LEADING + row : row * LEADING + column);
    __syncthreads();
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
#pragma unroll
      for (int n = 0; n < P::NB; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int r = 8 * m, c = 8 * n + e;
          from_float(s[m][n][e], own[TRANSPOSED ? c * LEADING + r : r * LEADING + c]);
        }
      }
    }
    __syncthreads();
    store(tile, i, j);
  }

  // s becomes W.
  __device__ void weigh(Acc (&s)[P::MB][P::NB][2], const OneTile& t) const {
    const Problem& p = w.p;
    const int row = t.i + P::warp_row() + (lane_id() >> 2), column = t.j + P::warp_column() + 2 * (lane_id() & 3);
    Acc factor = 1;
    if (w.unit != nullptr) {
      const Acc largest = *static_cast<const Acc*>(w.unit);
      factor = largest > Acc(0) ? Acc(HALF_RANGE) / largest : Acc(0);
      if (largest != largest) factor = largest;
    }
    const Acc* row_terms = static_cast<const Acc*>(w.row_terms) + 2 * static_cast<int64_t>(g) * p.M;
    Acc row_level[P::MB], row_weight[P::MB];
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
      const int r = min(row + 8 * m, p.M - 1);
      row_level[m] = row_terms[2 * r];
      row_weight[m] = row_terms[2 * r + 1] * factor;
    }
    if (w.col_terms == nullptr) {
#pragma unroll
      for (int m = 0; m < P::MB; ++m) {
#pragma unroll
        for (int n = 0; n < P::NB; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) s[m][n][e] = row_weight[m] * exp_2(s[m][n][e] - row_level[m]);
        }
      }
      return;
    }
    const Acc* col_terms = static_cast<const Acc*>(w.col_terms) + 2 * static_cast<int64_t>(g) * p.N;
    Acc top = row_level[0], low = top;
#pragma unroll
    for (int m = 1; m < P::MB; ++m) top = fmax(top, row_level[m]), low = fmin(low, row_level[m]);
#pragma unroll
    for (int n = 0; n < P::NB; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Acc level = col_terms[2 * min(column + 8 * n + e, p.N - 1)];
        top = fmax(top, level), low = fmin(low, level);
      }
    }
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) {
      top = fmax(top, shuffle_xor(top, bit));
      low = fmin(low, shuffle_xor(low, bit));
    }
    const bool close = top - low <= Acc(SPREAD);
    if (close) {
#pragma unroll
      for (int m = 0; m < P::MB; ++m) row_weight[m] *= exp_2(top - row_level[m]);
    }
#pragma unroll
    for (int n = 0; n < P::NB; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = 2 * min(column + 8 * n + e, p.N - 1);
        const Acc level = col_terms[c];
        Acc weight = col_terms[c + 1] * factor;
        if (close) {
          weight *= exp_2(top - level);
#pragma unroll
          for (int m = 0; m < P::MB; ++m) s[m][n][e] = exp_2(s[m][n][e] - top) * (row_weight[m] + weight);
        } else {
#pragma unroll
          for (int m = 0; m < P::MB; ++m) {
            s[m][n][e] = row_weight[m] * exp_2(s[m][n][e] - row_level[m]) + weight * exp_2(s[m][n][e] - level);
          }
        }
      }
    }
  }

  // The tile in shared memory to rows i.., columns j.. of the panel; the padding of ld gets what the tile holds there.
  __device__ void store(const Element* tile, int i, int j) const {
    const int64_t ld = ceil_div(w.p.N, 16) * int64_t(16);
    Element* panel = static_cast<Element*>(w.panel) + static_cast<int64_t>(g) * w.p.M * ld;
    constexpr int ACROSS = P::BN / VECTOR;
    for (int place = static_cast<int>(threadIdx.x); place < P::BM * ACROSS; place += P::THREADS) {
      const int row = place / ACROSS, column = place % ACROSS * VECTOR;
      if (i + row < w.p.M && j + column < ld) {
        *reinterpret_cast<uint4*>(panel + (i + row) * ld + j + column) =
            *reinterpret_cast<const uint4*>(tile + row * LEADING + column);
      }
    }
  }
};

template <class P>
using WeightLoop = TileLoop<P, 4>;

template <class P, bool KEYED>
constexpr int weight_shared() {
  return WeightLoop<P>::SHARED > Weight<P, KEYED>::SHARED ? WeightLoop<P>::SHARED : Weight<P, KEYED>::SHARED;
}

template <class P, bool KEYED>
__global__ void __launch_bounds__(P::THREADS, KEYED || sizeof(typename P::Element) == 4 ? 1 : P::BLOCKS)
    pair_weight(const __grid_constant__ WeightParams w) {
  using Acc = typename P::Acc;
  using Element = typename P::Element;
  SHARED_MEMORY(shared);
  const Problem& p = w.p;
  const int tiles_m = ceil_div(p.M, P::BM), tiles_n = ceil_div(p.N, P::BN), tiles = tiles_m * tiles_n;
  const int g = static_cast<int>(blockIdx.x) / tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  const int band = tile / (BAND * tiles_n) * BAND, height = min(tiles_m - band, BAND), place = tile % (BAND * tiles_n);
  const OneTile only{(band + place % height) * P::BM, place / height * P::BN};
  if (w.mirror && only.j < only.i) return;
  Weight<P, KEYED> epilogue{w, g, *static_cast<const Acc*>(p.scale) * Acc(LOG2E), shared};
  WeightLoop<P>::run(operand<Element>(p.x, g, p.M, p.D), operand<Element>(p.y, g, p.N, p.D), p.D, only, epilogue,
                     shared);
}

template <class P>
void launch_pair_weight(const WeightParams& w, Stream stream) {
  const int64_t tiles = static_cast<int64_t>(ceil_div(w.p.M, P::BM)) * ceil_div(w.p.N, P::BN);
  launch(w.p.kind >= OTHER_KEY ? pair_weight<P, true> : pair_weight<P, false>, w.p.G * tiles, P::THREADS,
         weight_shared<P, false>(), stream, w);
}

}  // namespace fused_contrastive
