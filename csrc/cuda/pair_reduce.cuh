// pair_reduce: (maximum, sum of exp2(s2 - maximum)) of the candidate logits of each row, and of each column, in one pass over the
// tiles, as partial results in private slots: no atomics, the same bits in every run.
//
// One block per pair of super tiles (super_rows rows x super_rows columns of one group). SYMMETRIC (one set): only pairs at or above
// the diagonal; their column results are partial results of the mirrored rows. Row statistics stay in registers along a strip of
// tiles; column statistics of SUB columns stay in shared memory, one copy per row of warps, so a tile's epilogue needs no barrier.
//
// Slots, S = super tiles across: rows [S_n (+ 1 if symmetric), G, M] sums, then as many maxima; columns (two sets) [S_m, G, N] sums,
// then maxima. Symmetric: slot S holds the diagonal super tile's mirrored part.
//
// Two regimes, by a uniform test of |scale| max|a| max|b| + max|bias| <= DIRECT: without a shift (one exp2 per logit, maximum stored
// as 0), or with running maxima kept by each thread (two exp2 with columns), exact for any logits.
//
// Flops: 2 M N D (symmetric: N^2 D), M N (half) exponentials. Bytes: tiles from L2, 128 x 128: 64 flop/byte at 16 bit; 16 bytes of
// slots per row and super tile. Shared memory 64 KiB of stages + column statistics, two blocks per SM.
// Predicted, bf16, D >= 256: mma.sync reaches 60-65 % of the tensor rate on sm_80 (190 TF/s of 312; ldmatrix feeds 1.5 mma per
// load) and, limited to the mma.sync issue rate, about 55 % on sm_90 (430 of 790). D = 128: 16 exp2/clk/SM adds 0.06 clk per
// element to 0.10 of products, hidden by the second block: 45 %.
#pragma once

#include "logits.cuh"

namespace fused_contrastive {

constexpr double DIRECT = 60.0;  // natural logits; exp stays normal in float32, sums of 2^30 of them too
constexpr int SUB = 512;         // columns whose statistics are in shared memory at a time

// The tiles of one super tile: SUB columns at a time, strips of rows within, tiles along a strip.
template <int BM, int BN>
struct SuperTiles {
  static_assert(BM == BN && SUB % BN == 0, "the diagonal needs square tiles");
  int i_begin, i_end, j_begin, j_end;
  bool diagonal;  // only tiles at or above it
  int i, j, sub;

  __device__ SuperTiles(int i0, int i1, int j0, int j1, bool diag)
      : i_begin(i0), i_end(i1), j_begin(j0), j_end(j1), diagonal(diag), i(i0), j(j0), sub(j0) {}
  __device__ int sub_end() const { return min(sub + SUB, j_end); }
  __device__ int rows_end() const { return diagonal ? min(i_end, sub_end()) : i_end; }
  __device__ bool valid() const { return sub < j_end; }
  __device__ bool strip_end() const { return j + BN >= sub_end(); }
  __device__ bool sub_is_done() const { return strip_end() && i + BM >= rows_end(); }
  __device__ bool first_of_rows() const { return diagonal ? sub <= i : sub == j_begin; }
  __device__ void next() {
    j += BN;
    if (j < sub_end()) return;
    i += BM;
    if (i >= rows_end()) {
      sub += SUB;
      i = i_begin;
    }
    j = diagonal ? max(sub, i) : sub;
  }
};

template <class P, bool KEYED>
struct Reduce {
  using Acc = typename P::Acc;
  static constexpr int OWN = P::NB / 4;  // columns of a warp's tile that a lane sums up
  static constexpr int SHARED =
      static_cast<int>(sizeof(Acc)) * 2 * (P::WARPS_M * SUB + P::WARPS_N * P::BM);

  const ReduceParams& r;
  int64_t g;
  Acc scale2;
  bool careful;
  Acc* row_slot;  // of this group and pair of super tiles
  Acc* col_slot;
  int64_t row_planes, col_planes;  // from sums to maxima
  Acc* col_sums;                   // [2][WARPS_M][SUB], sums then maxima
  Acc* row_parts;                  // [2][WARPS_N][BM]
  Acc row_sum[P::MB], row_max[P::MB];

  __device__ void clear_rows() {
#pragma unroll
    for (int m = 0; m < P::MB; ++m) row_sum[m] = 0, row_max[m] = careful ? -infinity(Acc(0)) : Acc(0);
  }

  __device__ void clear_columns() {
    for (int c = static_cast<int>(threadIdx.x); c < P::WARPS_M * SUB; c += P::THREADS) {
      col_sums[c] = 0;
      col_sums[P::WARPS_M * SUB + c] = careful ? -infinity(Acc(0)) : Acc(0);
    }
  }

  __device__ void operator()(Acc (&s)[P::MB][P::NB][2], const SuperTiles<P::BM, P::BN>& t, const unsigned char*) {
    const bool on_diagonal = t.diagonal && t.i == t.j;
    const bool mask = on_diagonal || needs_mask<P::BM, P::BN>(r.p, t.i, t.j);
    logits<KEYED>(s, r.p, g, scale2, t.i + P::warp_row(), t.j + P::warp_column(), mask, t.diagonal);
    if (careful) {
      rows_careful(s);
      if (r.columns) columns_careful(s, t, on_diagonal);
    } else {
      direct(s, t, on_diagonal);
    }
    if (!t.strip_end()) return;
    finish_strip(t);
    clear_rows();
    if (!t.sub_is_done()) return;
    if (r.columns) {
      finish_columns(t);
      clear_columns();
    }
    __syncthreads();
  }

  // Whether element (m, n, e) of this lane is a pair of a row with itself.
  __device__ bool is_self(const SuperTiles<P::BM, P::BN>& t, int m, int n, int e) const {
    return t.i + P::warp_row() + 8 * m + (lane_id() >> 2) == t.j + P::warp_column() + 8 * n + 2 * (lane_id() & 3) + e;
  }

  __device__ void direct(Acc (&s)[P::MB][P::NB][2], const SuperTiles<P::BM, P::BN>& t, bool on_diagonal) {
    Acc sums[P::NB * 2] = {};
#pragma unroll
    for (int n = 0; n < P::NB; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int m = 0; m < P::MB; ++m) {
          const Acc value = exp_2(s[m][n][e]);
          row_sum[m] += value;
          sums[2 * n + e] += on_diagonal && is_self(t, m, n, e) ? Acc(0) : value;
        }
      }
    }
    if (!r.columns) return;
    // Eight lanes of a column add up and share the columns: each step halves the values a lane holds.
#pragma unroll
    for (int step = 0, width = P::NB; step < 3; ++step, width /= 2) {
      const int bit = 16 >> step;
      const bool upper = lane_id() & bit;
#pragma unroll
      for (int c = 0; c < P::NB; ++c) {
        if (c < width) {
          const Acc mine = upper ? sums[c + width] : sums[c], given = upper ? sums[c] : sums[c + width];
          sums[c] = mine + shuffle_xor(given, bit);
        }
      }
    }
    Acc* target = col_sums + static_cast<int>(threadIdx.x) / 32 / P::WARPS_N * SUB + t.j - t.sub + P::warp_column();
#pragma unroll
    for (int c = 0; c < OWN; ++c) target[own_column(c)] += sums[c];
  }

  // The column of the warp's tile whose total a lane holds as value c after the exchanges.
  static __device__ int own_column(int c) {
    const int lane = lane_id();
    int value = c;
#pragma unroll
    for (int step = 0, width = P::NB; step < 3; ++step, width /= 2) value += lane & 16 >> step ? width : 0;
    return value / 2 * 8 + 2 * (lane & 3) + value % 2;
  }

  __device__ void rows_careful(const Acc (&s)[P::MB][P::NB][2]) {
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
      Acc top = row_max[m];
#pragma unroll
      for (int n = 0; n < P::NB; ++n) top = fmax(top, fmax(s[m][n][0], s[m][n][1]));
      const Acc shift = finite(top);
      Acc sum = row_sum[m] * exp_2(row_max[m] - shift);
#pragma unroll
      for (int n = 0; n < P::NB; ++n) sum += exp_2(s[m][n][0] - shift) + exp_2(s[m][n][1] - shift);
      row_sum[m] = sum;
      row_max[m] = top;
    }
  }

  __device__ void columns_careful(Acc (&s)[P::MB][P::NB][2], const SuperTiles<P::BM, P::BN>& t, bool on_diagonal) {
    Acc sums[P::NB * 2], tops[P::NB * 2];
#pragma unroll
    for (int n = 0; n < P::NB; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        Acc top = -infinity(Acc(0));
#pragma unroll
        for (int m = 0; m < P::MB; ++m) {
          if (on_diagonal && is_self(t, m, n, e)) s[m][n][e] = -infinity(Acc(0));
          top = fmax(top, s[m][n][e]);
        }
        const Acc shift = finite(top);
        Acc sum = 0;
#pragma unroll
        for (int m = 0; m < P::MB; ++m) sum += exp_2(s[m][n][e] - shift);
        sums[2 * n + e] = sum;
        tops[2 * n + e] = top;
      }
    }
#pragma unroll
    for (int step = 0, width = P::NB; step < 3; ++step, width /= 2) {
      const int bit = 16 >> step;
      const bool upper = lane_id() & bit;
#pragma unroll
      for (int c = 0; c < P::NB; ++c) {
        if (c < width) {
          const Acc given = upper ? sums[c] : sums[c + width], given_top = upper ? tops[c] : tops[c + width];
          sums[c] = upper ? sums[c + width] : sums[c];
          tops[c] = upper ? tops[c + width] : tops[c];
          const Acc other_top = shuffle_xor(given_top, bit), other = shuffle_xor(given, bit);
          fold(tops[c], sums[c], other_top, other);
        }
      }
    }
    Acc* target = col_sums + static_cast<int>(threadIdx.x) / 32 / P::WARPS_N * SUB + t.j - t.sub + P::warp_column();
#pragma unroll
    for (int c = 0; c < OWN; ++c) {
      const int column = own_column(c);
      fold(target[P::WARPS_M * SUB + column], target[column], tops[c], sums[c]);
    }
  }

  // Row statistics of a strip: lanes of a row, then warps, then into the slot.
  __device__ void finish_strip(const SuperTiles<P::BM, P::BN>& t) {
    const int warp_column = static_cast<int>(threadIdx.x) / 32 % P::WARPS_N;
#pragma unroll
    for (int m = 0; m < P::MB; ++m) {
#pragma unroll
      for (int bit = 1; bit < 4; bit *= 2) {
        const Acc other_max = shuffle_xor(row_max[m], bit), other = shuffle_xor(row_sum[m], bit);
        fold(row_max[m], row_sum[m], other_max, other);
      }
      if ((lane_id() & 3) == 0) {
        const int row = P::warp_row() + 8 * m + (lane_id() >> 2);
        row_parts[warp_column * P::BM + row] = row_sum[m];
        row_parts[(P::WARPS_N + warp_column) * P::BM + row] = row_max[m];
      }
    }
    __syncthreads();
    for (int row = static_cast<int>(threadIdx.x); row < P::BM; row += P::THREADS) {
      if (t.i + row < r.p.M) {
        Acc sum = row_parts[row], top = row_parts[P::WARPS_N * P::BM + row];
        for (int w = 1; w < P::WARPS_N; ++w) fold(top, sum, row_parts[(P::WARPS_N + w) * P::BM + row], row_parts[w * P::BM + row]);
        Acc* slot = row_slot + t.i + row;
        if (!t.first_of_rows()) fold(top, sum, slot[row_planes], slot[0]);
        slot[0] = sum;
        slot[row_planes] = top;
      }
    }
    __syncthreads();
  }

  __device__ void finish_columns(const SuperTiles<P::BM, P::BN>& t) {
    for (int c = static_cast<int>(threadIdx.x); c < t.sub_end() - t.sub; c += P::THREADS) {
      Acc sum = col_sums[c], top = col_sums[P::WARPS_M * SUB + c];
      for (int w = 1; w < P::WARPS_M; ++w) fold(top, sum, col_sums[(P::WARPS_M + w) * SUB + c], col_sums[w * SUB + c]);
      col_slot[t.sub + c] = sum;
      col_slot[t.sub + c + col_planes] = top;
    }
    __syncthreads();
  }
};

template <class P>
using ReduceLoop = TileLoop<P, 4>;

template <class P, bool KEYED>
__global__ void __launch_bounds__(P::THREADS, KEYED ? 1 : P::BLOCKS) pair_reduce(const __grid_constant__ ReduceParams r) {
  using Acc = typename P::Acc;
  SHARED_MEMORY(shared);
  const Problem& p = r.p;
  const int supers_m = ceil_div(p.M, r.super_rows), supers_n = ceil_div(p.N, r.super_rows);
  const int pairs = r.symmetric ? supers_n * (supers_n + 1) / 2 : supers_m * supers_n;
  const int g = static_cast<int>(blockIdx.x) / pairs;
  int pair = static_cast<int>(blockIdx.x) % pairs, super_i = 0, super_j;
  if (r.symmetric) {
    while (pair >= supers_n - super_i) pair -= supers_n - super_i++;
    super_j = super_i + pair;
  } else {
    super_i = pair / supers_n;
    super_j = pair % supers_n;
  }

  const int64_t row_plane = static_cast<int64_t>(p.G) * p.M, col_plane = static_cast<int64_t>(p.G) * p.N;
  const int64_t row_planes = row_plane * (supers_n + r.symmetric);
  Acc* slots = static_cast<Acc*>(r.slots);
  const Acc scale = *static_cast<const Acc*>(p.scale);
  const float* bound = r.bound + 3 * g;
  const float norms = r.normalized ? 1.01f : bound[0] * bound[r.symmetric ? 0 : 1];
  const float limit = fabsf(static_cast<float>(scale)) * norms + bound[2];
  Acc* statistics = reinterpret_cast<Acc*>(shared + ReduceLoop<P>::SHARED);
  Reduce<P, KEYED> epilogue{r, g, scale * Acc(LOG2E), r.extrema || !(limit <= static_cast<float>(DIRECT))};
  epilogue.row_slot = slots + super_j * row_plane + static_cast<int64_t>(g) * p.M;
  epilogue.row_planes = row_planes;
  if (r.symmetric) {
    epilogue.col_slot = slots + (super_i == super_j ? supers_n : super_i) * row_plane + static_cast<int64_t>(g) * p.M;
    epilogue.col_planes = row_planes;
  } else {
    epilogue.col_slot = slots + 2 * row_planes + super_i * col_plane + static_cast<int64_t>(g) * p.N;
    epilogue.col_planes = col_plane * supers_m;
  }
  epilogue.col_sums = statistics;
  epilogue.row_parts = statistics + 2 * P::WARPS_M * SUB;
  epilogue.clear_rows();
  epilogue.clear_columns();
  const int i = super_i * r.super_rows, j = super_j * r.super_rows;
  const SuperTiles<P::BM, P::BN> tiles(i, min(i + r.super_rows, p.M), j, min(j + r.super_rows, p.N), r.symmetric && i == j);
  using Element = typename P::Element;
  ReduceLoop<P>::run(operand<Element>(p.x, g, p.M, p.D), operand<Element>(p.y, g, p.N, p.D), tiles, epilogue, shared);
}

template <class P>
void launch_pair_reduce(const ReduceParams& r, Stream stream) {
  const int64_t supers_m = ceil_div(r.p.M, r.super_rows), supers_n = ceil_div(r.p.N, r.super_rows);
  const int64_t pairs = r.symmetric ? supers_n * (supers_n + 1) / 2 : supers_m * supers_n;
  const int shared = ReduceLoop<P>::SHARED + Reduce<P, false>::SHARED;
  launch(r.p.kind >= OTHER_KEY ? pair_reduce<P, true> : pair_reduce<P, false>, r.p.G * pairs, P::THREADS, shared, stream, r);
}

}  // namespace fused_contrastive
