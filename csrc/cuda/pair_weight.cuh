// pair_weight computes a panel of the gradient weights, for library products with the embeddings:
//   W_ij = weight_i exp2(s2_ij - level_i) [+ weight_j exp2(s2_ij - level_j)],  0 where j is no
//   candidate of i.
// Terms are pairs (level, weight). The panel is [G, M, ld] with ld = N rounded up to 16 elements.
// MIRROR serves one set and the whole matrix: tiles at or above the diagonal are computed and
// written at both places. Each tile has a block; on sm_90 each SM has one that runs through its
// share. BAND rows of tiles follow each other, so that operands stay in L2. Tiles leave through
// shared memory in rows of 16-byte stores.
//
// Where the levels of a warp's tile are close (SPREAD octaves) both terms share one exponential.
//
// Flops: 2 M N D (MIRROR: N^2 D), and M N (MIRROR: half as many) exponentials. Bytes: M N elements
// written. Predicted: as pair_reduce for D >= 256, less the exposed epilogue of one tile per block.
// The second block of an SM hides that; for sm_90 see products_sm90.cuh. The rate never exceeds the
// copy rate. At 16 bit 4.3 TB/s of W are 2.15e12 elements/s of 2 D flops each (MIRROR: D). Products
// are the limit from D >= 200 (MIRROR: 400) on.
#pragma once

#include "logits.cuh"

namespace fused_contrastive {

// In octaves. What flushes to zero is below 2^-92 of its row's weight.
constexpr double SPREAD = 34.0;
// float16 panels hold W HALF_RANGE / unit, at most twice HALF_RANGE in magnitude.
constexpr double HALF_RANGE = 8192.0;
constexpr int BAND = 8;

// The tiles of all groups, BAND rows of them in turn. A block has one tile, or with SEVERAL every
// gridDim.x-th.
template <int BM, int BN, bool SEVERAL>
struct PanelTiles {
  const WeightParams& w;
  uint32_t index;
  int g, i, j;

  __device__ explicit PanelTiles(const WeightParams& params) : w(params), index(blockIdx.x) {
    find();
  }
  __device__ bool valid() const { return i >= 0; }
  __device__ void next() {
    i = -1;
    if (!SEVERAL) return;
    index += gridDim.x;
    find();
  }
  // The next tile from `index` on that is not the mirror image of another.
  __device__ void find() {
    const int tiles_m = ceil_div(w.p.M, BM), tiles_n = ceil_div(w.p.N, BN),
              tiles = tiles_m * tiles_n;
    for (i = -1; index < static_cast<uint32_t>(w.p.G * tiles); index += gridDim.x) {
      const int tile = static_cast<int>(index % tiles), place = tile % (BAND * tiles_n);
      const int band = tile / (BAND * tiles_n) * BAND, height = min(tiles_m - band, BAND);
      g = static_cast<int>(index / tiles);
      j = place / height * BN;
      if (w.mirror && j + BN <= (band + place % height) * BM) continue;
      i = (band + place % height) * BM;
      return;
    }
  }
};

template <class P, bool KEYED>
struct Weight {
  using Acc = typename P::Acc;
  using Element = typename P::Element;
  static constexpr int VECTOR = 16 / static_cast<int>(sizeof(Element));
  using Tiles = PanelTiles<P::BM, P::BN, PairLoop<P, 4>::PERSISTENT>;
  static_assert(P::BN % P::BM == 0,
                "the mirror image of a tile that crosses the diagonal is in tiles that do");
  static constexpr int PIECE = P::TEAM_ROWS * (P::PIECE + VECTOR),
                       MIRRORED = P::PIECE * (P::TEAM_ROWS + VECTOR);
  static constexpr int TEAM_SHARED = max_of(PIECE, MIRRORED) * static_cast<int>(sizeof(Element));
  static constexpr int SHARED = P::THREADS / P::TEAM * TEAM_SHARED;

  const WeightParams& w;
  Acc scale2;
  unsigned char* shared;

  __device__ void operator()(Acc (&s)[P::MB][P::NB][2], const Tiles& t, const unsigned char*) {
    const Problem& p = w.p;
    const bool mask = needs_mask<P::BM, P::BN>(p, t.i, t.j);
    logits<P, KEYED>(s, p, t.g, scale2, t.i + P::warp_row(), t.j + P::warp_column(), mask, false);
    weigh(s, t);
    emit<false>(s, t.g, t.i, t.j);
    if (w.mirror && t.j > t.i) emit<true>(s, t.g, t.j, t.i);
  }

  // Writes the tile (TRANSPOSED: its transpose) to rows i.., columns j.. of the panel. It passes
  // through the team's shared memory, whose rows begin in different banks.
  template <bool TRANSPOSED>
  __device__ void emit(const Acc (&s)[P::MB][P::NB][2], int g, int i, int j) const {
    constexpr int ROWS = TRANSPOSED ? P::PIECE : P::TEAM_ROWS,
                  COLUMNS = TRANSPOSED ? P::TEAM_ROWS : P::PIECE;
    constexpr int LEADING = COLUMNS + VECTOR, PIECES = P::BN / P::PIECE, ACROSS = P::NB / PIECES;
    Element* tile = reinterpret_cast<Element*>(shared + P::team_row() / P::TEAM_ROWS * TEAM_SHARED);
    const int row = P::warp_row() - P::team_row() + (lane_id() >> 2),
              column = P::warp_column() + 2 * (lane_id() & 3);
    Element* own = tile + (TRANSPOSED ? column * LEADING + row : row * LEADING + column);
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece) {
      P::sync();
#pragma unroll
      for (int m = 0; m < P::MB; ++m) {
#pragma unroll
        for (int n = 0; n < ACROSS; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int r = 8 * m, c = 8 * n + e;
            from_float(s[m][piece * ACROSS + n][e],
                       own[TRANSPOSED ? c * LEADING + r : r * LEADING + c]);
          }
        }
      }
      P::sync();
      const int first = piece * P::PIECE;
      if (TRANSPOSED) {
        store<ROWS, COLUMNS>(tile, g, i + first, j + P::team_row());
      } else {
        store<ROWS, COLUMNS>(tile, g, i + P::team_row(), j + first);
      }
    }
  }

  // Turns the products s into weights W.
  __device__ void weigh(Acc (&s)[P::MB][P::NB][2], const Tiles& t) const {
    const Problem& p = w.p;
    const int row = t.i + P::warp_row() + (lane_id() >> 2);
    const int column = t.j + P::warp_column() + 2 * (lane_id() & 3);
    Acc factor = 1;
    if (w.unit != nullptr) {
      const Acc largest = *static_cast<const Acc*>(w.unit);
      factor = largest > Acc(0) ? Acc(HALF_RANGE) / largest : Acc(0);
      if (largest != largest) factor = largest;
    }
    const Acc* row_terms =
        static_cast<const Acc*>(w.row_terms) + 2 * static_cast<int64_t>(t.g) * p.M;
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
    const Acc* col_terms =
        static_cast<const Acc*>(w.col_terms) + 2 * (static_cast<int64_t>(t.g) * p.N + column);
    Acc top = row_level[0], low = top;
#pragma unroll
    for (int m = 1; m < P::MB; ++m) top = fmax(top, row_level[m]), low = fmin(low, row_level[m]);
#pragma unroll
    for (int n = 0; n < P::NB; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int c = 8 * n + e;
        const Acc level = column + c < p.N ? col_terms[2 * c] : low;
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
        const int c = 8 * n + e;
        const bool inside = column + c < p.N;
        const Acc level = inside ? col_terms[2 * c] : Acc(0);
        Acc weight = inside ? col_terms[2 * c + 1] * factor : Acc(0);
        if (close) {
          weight *= exp_2(top - level);
#pragma unroll
          for (int m = 0; m < P::MB; ++m)
            s[m][n][e] = exp_2(s[m][n][e] - top) * (row_weight[m] + weight);
        } else {
#pragma unroll
          for (int m = 0; m < P::MB; ++m) {
            s[m][n][e] = row_weight[m] * exp_2(s[m][n][e] - row_level[m]) +
                         weight * exp_2(s[m][n][e] - level);
          }
        }
      }
    }
  }

  // Writes the tile in shared memory to rows i.., columns j.. of the panel. The padding of ld gets
  // what the tile holds there.
  template <int ROWS, int COLUMNS>
  __device__ void store(const Element* tile, int g, int i, int j) const {
    const int64_t ld = ceil_div(w.p.N, 16) * int64_t(16);
    Element* panel = static_cast<Element*>(w.panel) + static_cast<int64_t>(g) * w.p.M * ld;
    constexpr int ACROSS = COLUMNS / VECTOR;
    for (int place = P::team_thread(); place < ROWS * ACROSS; place += P::TEAM) {
      const int row = place / ACROSS, column = place % ACROSS * VECTOR;
      if (i + row < w.p.M && j + column < ld) {
        *reinterpret_cast<uint4*>(panel + (i + row) * ld + j + column) =
            *reinterpret_cast<const uint4*>(tile + row * (COLUMNS + VECTOR) + column);
      }
    }
  }
};

// A block that runs on to its next tile fills stages while it writes one.
template <class P>
using WeightLoop = PairLoop<P, 4>;

template <class P, bool KEYED>
constexpr int weight_shared() {
  constexpr int loop = WeightLoop<P>::SHARED, tile = Weight<P, KEYED>::SHARED;
  return WeightLoop<P>::PERSISTENT ? loop + tile : max_of(loop, tile);
}

template <class P, bool KEYED>
__global__ void __launch_bounds__(WeightLoop<P>::THREADS,
                                  KEYED || sizeof(typename P::Element) == 4 ? 1 : P::BLOCKS)
    pair_weight(const __grid_constant__ Arguments<WeightLoop<P>, WeightParams> arguments) {
  using Acc = typename P::Acc;
  SHARED_MEMORY(shared);
  const WeightParams& w = arguments.params;
  unsigned char* tile = WeightLoop<P>::PERSISTENT ? shared + WeightLoop<P>::SHARED : shared;
  Weight<P, KEYED> epilogue{w, *static_cast<const Acc*>(w.p.scale) * Acc(LOG2E), tile};
  WeightLoop<P>::run(arguments.sources, w.p, typename Weight<P, KEYED>::Tiles(w), epilogue, shared);
}

template <class P>
void launch_pair_weight(const WeightParams& w, Stream stream) {
  const int64_t tiles =
      static_cast<int64_t>(ceil_div(w.p.M, P::BM)) * ceil_div(w.p.N, P::BN) * w.p.G;
  const int64_t blocks =
      WeightLoop<P>::PERSISTENT ? min(checked_blocks(tiles), multiprocessors()) : tiles;
  const Arguments<WeightLoop<P>, WeightParams> arguments{typename WeightLoop<P>::Sources(w.p), w};
  launch(w.p.kind >= OTHER_KEY ? pair_weight<P, true> : pair_weight<P, false>, blocks,
         WeightLoop<P>::THREADS, weight_shared<P, false>(), stream, arguments);
}

}  // namespace fused_contrastive
