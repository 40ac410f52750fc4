// pair_reduce computes (maximum, sum of exp2(s2 - maximum)) over the candidate logits of each row,
// and of each column, in one pass over the tiles. Results are partial ones in private slots. There
// are no atomics, and every run gives the same bits.
//
// One block serves a pair of super tiles: super_rows rows x super_rows columns of one group.
// SYMMETRIC (one set) takes only the pairs at or above the diagonal; their column results are
// partial results of the mirrored rows. Row statistics stay in registers along a strip of tiles.
// Column statistics of SUB columns stay in shared memory, one copy per row of warps, so that a
// tile's epilogue needs no barrier.
//
// Slots for S super tiles across: rows have [S_n (+ 1 if symmetric), G, M] sums, then as many
// maxima. Columns (two sets) have [S_m, G, N] sums, then maxima. In the symmetric case slot S holds
// the mirrored part of the diagonal super tile.
//
// There are two regimes, chosen by the uniform test |scale| max|a| max|b| + max|bias| <= DIRECT.
// The first needs no shift: it takes one exp2 per logit and stores 0 as the maximum. In the second
// each thread keeps running maxima, which is exact for any logits and takes two exp2 with columns.
//
// Flops: 2 M N D (symmetric: N^2 D), and M N (symmetric: half as many) exponentials. Bytes: 128 x
// 128 tiles from L2 give 64 flop/byte at 16 bit; 16 bytes of slots per row and super tile. Shared
// memory: 64 KiB of stages and the column statistics, two blocks per SM (sm_90 at 16 bit: 225 KiB,
// one block).
//
// Predicted for bf16, D >= 256: on sm_80 mma.sync at 60-65 % of the tensor rate (190 TF/s of 312);
// on sm_86 and sm_120 65 % of their mma.sync rate; on sm_90 see products_sm90.cuh. At D = 128 the
// 16 exp2 per clock and SM add 0.06 clk per element to 0.10 of products. The second block hides
// part of that: 45 %. tf32 takes half of that rate and 3 x tf32 a sixth, both bound by products
// from D = 64 on. FMA takes 60 % of the float32 rate, as shared memory feeds 16 FMA per load.
// float64 takes 70 %.
#pragma once

#include "logits.cuh"

namespace fused_contrastive {

// A bound on the natural logits: their exp stays normal in float32, as do sums of 2^30 of them.
constexpr double DIRECT = 60.0;
// How many columns have their statistics in shared memory at a time.
constexpr int SUB = 512;

// The tiles of one super tile: SUB columns at a time, within these strips of rows, and along a
// strip its tiles.
template <int BM, int BN>
struct SuperTiles {
  static_assert(BN % BM == 0 && SUB % BN == 0,
                "a tile that crosses the diagonal is the first of its strip");
  const ReduceParams& r;
  int g, super_i, super_j;
  int i, j, sub;

  __device__ SuperTiles(const ReduceParams& params, int group, int super_row, int super_column)
      : r(params),
        g(group),
        super_i(super_row),
        super_j(super_column),
        i(i_begin()),
        j(j_begin()),
        sub(j_begin()) {}
  __device__ int i_begin() const { return super_i * r.super_rows; }
  __device__ int j_begin() const { return super_j * r.super_rows; }
  __device__ int j_end() const { return min(j_begin() + r.super_rows, r.p.N); }
  // Whether only tiles at or above the diagonal count.
  __device__ bool diagonal() const { return r.symmetric && super_i == super_j; }
  __device__ int sub_end() const { return min(sub + SUB, j_end()); }
  __device__ int rows_end() const {
    const int end = min(i_begin() + r.super_rows, r.p.M);
    return diagonal() ? min(end, sub_end()) : end;
  }
  __device__ bool valid() const { return sub < j_end(); }
  // The column of the diagonal's tile.
  __device__ int first_at_or_above() const { return BM == BN ? i : i / BN * BN; }
  __device__ bool on_diagonal() const { return diagonal() && j == first_at_or_above(); }
  __device__ bool strip_end() const { return j + BN >= sub_end(); }
  __device__ bool sub_is_done() const { return strip_end() && i + BM >= rows_end(); }
  __device__ bool first_of_rows() const { return diagonal() ? sub <= i : sub == j_begin(); }
  __device__ void next() {
    j += BN;
    if (j < sub_end()) return;
    i += BM;
    if (i >= rows_end()) {
      sub += SUB;
      i = i_begin();
    }
    j = diagonal() ? max(sub, first_at_or_above()) : sub;
  }
};

template <class P, bool KEYED>
struct Reduce {
  using Acc = typename P::Acc;
  static_assert(P::NB % 4 == 0, "columns are exchanged 32 at a time");
  static constexpr int SHARED =
      static_cast<int>(sizeof(Acc)) * 2 * (P::WARPS_M * SUB + P::WARPS_N * P::BM);

  const ReduceParams& r;
  int g;
  Acc scale2;
  bool careful;
  // [2][WARPS_M][SUB]: sums, then maxima. row_parts lies behind them.
  Acc* col_sums;
  Acc row_sum[P::MB], row_max[P::MB];

  __device__ Acc* row_parts() const { return col_sums + 2 * P::WARPS_M * SUB; }  // [2][WARPS_N][BM]

  // The slots of this group and pair of super tiles, from its first row (column) on. `planes` leads
  // from sums to maxima.
  struct Slot {
    Acc* sums;
    int64_t planes;
  };
  __device__ Slot row_slot(int super) const {
    const int64_t plane = static_cast<int64_t>(r.p.G) * r.p.M;
    Acc* sums = static_cast<Acc*>(r.slots) + super * plane + static_cast<int64_t>(g) * r.p.M;
    return {sums, plane * (ceil_div(r.p.N, r.super_rows) + r.symmetric)};
  }
  __device__ Slot col_slot(const SuperTiles<P::BM, P::BN>& t) const {
    const int super_i = t.super_i, supers_n = ceil_div(r.p.N, r.super_rows);
    if (r.symmetric) return row_slot(t.diagonal() ? supers_n : super_i);
    const int64_t plane = static_cast<int64_t>(r.p.G) * r.p.N;
    Acc* columns = static_cast<Acc*>(r.slots) + 2 * static_cast<int64_t>(r.p.G) * r.p.M * supers_n;
    return {columns + super_i * plane + static_cast<int64_t>(g) * r.p.N,
            plane * ceil_div(r.p.M, r.super_rows)};
  }

  __device__ void clear_rows() {
#pragma unroll
    for (int m = 0; m < P::MB; ++m)
      row_sum[m] = 0, row_max[m] = careful ? -infinity(Acc(0)) : Acc(0);
  }

  __device__ void clear_columns() {
    for (int c = static_cast<int>(threadIdx.x); c < SUB; c += P::THREADS) clear_column(c);
  }
  __device__ void clear_column(int c) {
    for (int w = 0; w < P::WARPS_M; ++w) {
      col_sums[w * SUB + c] = 0;
      col_sums[(P::WARPS_M + w) * SUB + c] = careful ? -infinity(Acc(0)) : Acc(0);
    }
  }

  __device__ void operator()(Acc (&s)[P::MB][P::NB][2], const SuperTiles<P::BM, P::BN>& t,
                             const unsigned char*) {
    const bool on_diagonal = t.on_diagonal();
    const bool mask = on_diagonal || needs_mask<P::BM, P::BN>(r.p, t.i, t.j);
    logits<P, KEYED>(s, r.p, g, scale2, t.i + P::warp_row(), t.j + P::warp_column(), mask,
                     t.diagonal());
    if (careful) {
      rows_careful(s);
      if (r.columns) columns_careful(s, t, on_diagonal);
    } else {
      direct(s, t, on_diagonal);
    }
    if (!t.strip_end()) return;
    finish_strip(t);
    clear_rows();
    if (r.columns && t.sub_is_done()) finish_columns(t);
  }

  // Whether element (m, n, e) of this lane is a pair of a row with itself.
  __device__ bool is_self(const SuperTiles<P::BM, P::BN>& t, int m, int n, int e) const {
    return t.i + P::warp_row() + 8 * m + (lane_id() >> 2) ==
           t.j + P::warp_column() + 8 * n + 2 * (lane_id() & 3) + e;
  }

  __device__ void direct(Acc (&s)[P::MB][P::NB][2], const SuperTiles<P::BM, P::BN>& t,
                         bool on_diagonal) {
#pragma unroll
    for (int group = 0; group < P::NB / 4; ++group) {
      Acc sums[8] = {};
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int n = 4 * group + c / 2, e = c % 2;
#pragma unroll
        for (int m = 0; m < P::MB; ++m) {
          const Acc value = exp_2(s[m][n][e]);
          row_sum[m] += value;
          sums[c] += on_diagonal && is_self(t, m, n, e) ? Acc(0) : value;
        }
      }
      if (!r.columns) continue;
#pragma unroll
      for (int bit = 16, width = 4; width > 0; bit /= 2, width /= 2) {
        const bool upper = lane_id() & bit;
#pragma unroll
        for (int c = 0; c < width; ++c) {
          const Acc mine = upper ? sums[c + width] : sums[c],
                    given = upper ? sums[c] : sums[c + width];
          sums[c] = mine + shuffle_xor(given, bit);
        }
      }
      own_column(t, group)[0] += sums[0];
    }
  }

  // Eight lanes hold parts of the same eight columns (of four 8 x 8 blocks). An exchange halves the
  // columns of a lane three times, so that each lane ends up with the total of one. This is where
  // that column's statistics are.
  __device__ Acc* own_column(const SuperTiles<P::BM, P::BN>& t, int group) const {
    const int lane = lane_id(), value = lane >> 4 << 2 | (lane >> 3 & 1) << 1 | (lane >> 2 & 1);
    const int column =
        t.j - t.sub + P::warp_column() + (4 * group + value / 2) * 8 + 2 * (lane & 3) + value % 2;
    return col_sums + static_cast<int>(threadIdx.x) / 32 / P::WARPS_N * SUB + column;
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

  __device__ void columns_careful(const Acc (&s)[P::MB][P::NB][2],
                                  const SuperTiles<P::BM, P::BN>& t, bool on_diagonal) {
#pragma unroll
    for (int group = 0; group < P::NB / 4; ++group) {
      Acc sums[8], tops[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int n = 4 * group + c / 2, e = c % 2;
        Acc top = -infinity(Acc(0));
#pragma unroll
        for (int m = 0; m < P::MB; ++m)
          top = on_diagonal && is_self(t, m, n, e) ? top : fmax(top, s[m][n][e]);
        const Acc shift = finite(top);
        Acc sum = 0;
#pragma unroll
        for (int m = 0; m < P::MB; ++m)
          sum += on_diagonal && is_self(t, m, n, e) ? Acc(0) : exp_2(s[m][n][e] - shift);
        sums[c] = sum;
        tops[c] = top;
      }
#pragma unroll
      for (int bit = 16, width = 4; width > 0; bit /= 2, width /= 2) {
        const bool upper = lane_id() & bit;
#pragma unroll
        for (int c = 0; c < width; ++c) {
          const Acc given = upper ? sums[c] : sums[c + width],
                    given_top = upper ? tops[c] : tops[c + width];
          sums[c] = upper ? sums[c + width] : sums[c];
          tops[c] = upper ? tops[c + width] : tops[c];
          const Acc other_top = shuffle_xor(given_top, bit), other = shuffle_xor(given, bit);
          fold(tops[c], sums[c], other_top, other);
        }
      }
      Acc* column = own_column(t, group);
      fold(column[P::WARPS_M * SUB], column[0], tops[0], sums[0]);
    }
  }

  // The row statistics of a strip: over the lanes of a row, then over warps, then into the slot.
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
        row_parts()[warp_column * P::BM + row] = row_sum[m];
        row_parts()[(P::WARPS_N + warp_column) * P::BM + row] = row_max[m];
      }
    }
    P::sync();
    const Slot slot = row_slot(t.super_j);
    const Acc* parts = row_parts();
    for (int place = P::team_thread(); place < P::TEAM_ROWS; place += P::TEAM) {
      const int row = P::team_row() + place;
      if (t.i + row < r.p.M) {
        Acc sum = parts[row], top = parts[P::WARPS_N * P::BM + row];
        for (int w = 1; w < P::WARPS_N; ++w)
          fold(top, sum, parts[(P::WARPS_N + w) * P::BM + row], parts[w * P::BM + row]);
        Acc* target = slot.sums + t.i + row;
        if (!t.first_of_rows()) fold(top, sum, target[slot.planes], target[0]);
        target[0] = sum;
        target[slot.planes] = top;
      }
    }
    P::sync();
  }

  __device__ void finish_columns(const SuperTiles<P::BM, P::BN>& t) {
    const Slot slot = col_slot(t);
    P::sync_all();
    for (int c = static_cast<int>(threadIdx.x); c < t.sub_end() - t.sub; c += P::THREADS) {
      Acc sum = col_sums[c], top = col_sums[P::WARPS_M * SUB + c];
      for (int w = 1; w < P::WARPS_M; ++w)
        fold(top, sum, col_sums[(P::WARPS_M + w) * SUB + c], col_sums[w * SUB + c]);
      slot.sums[t.sub + c] = sum;
      slot.sums[t.sub + c + slot.planes] = top;
      clear_column(c);
    }
    P::sync_all();
  }
};

template <class P>
using ReduceLoop = PairLoop<P, 4>;

template <class P, bool KEYED>
__global__ void __launch_bounds__(ReduceLoop<P>::THREADS, KEYED ? 1 : P::BLOCKS)
    pair_reduce(const __grid_constant__ Arguments<ReduceLoop<P>, ReduceParams> arguments) {
  using Acc = typename P::Acc;
  SHARED_MEMORY(shared);
  const ReduceParams& r = arguments.params;
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

  const Acc scale = *static_cast<const Acc*>(p.scale);
  const float* bound = r.bound + 3 * g;
  const float norms = r.normalized ? 1.01f : bound[0] * bound[r.symmetric ? 0 : 1];
  const float limit =
      fabsf(static_cast<float>(scale)) * norms + (p.bias == nullptr ? 0.0f : bound[2]);
  Reduce<P, KEYED> epilogue{r, g, scale * Acc(LOG2E),
                            r.extrema || !(limit <= static_cast<float>(DIRECT))};
  epilogue.col_sums = reinterpret_cast<Acc*>(shared + ReduceLoop<P>::SHARED);
  epilogue.clear_rows();
  epilogue.clear_columns();
  ReduceLoop<P>::run(arguments.sources, p, SuperTiles<P::BM, P::BN>(r, g, super_i, super_j),
                     epilogue, shared);
}

template <class P>
void launch_pair_reduce(const ReduceParams& r, Stream stream) {
  const int64_t supers_m = ceil_div(r.p.M, r.super_rows), supers_n = ceil_div(r.p.N, r.super_rows);
  const int64_t pairs = r.symmetric ? supers_n * (supers_n + 1) / 2 : supers_m * supers_n;
  const int shared = ReduceLoop<P>::SHARED + Reduce<P, false>::SHARED;
  if (r.super_rows % P::BN != 0)
    throw std::runtime_error("pair_reduce: super tiles of whole tiles");
  const Arguments<ReduceLoop<P>, ReduceParams> arguments{typename ReduceLoop<P>::Sources(r.p), r};
  launch(r.p.kind >= OTHER_KEY ? pair_reduce<P, true> : pair_reduce<P, false>, r.p.G * pairs,
         ReduceLoop<P>::THREADS, shared, stream, arguments);
}

}  // namespace fused_contrastive
