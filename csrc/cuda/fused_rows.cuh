// fused_rows computes log-sum-exp and softmax-weighted mean of the columns in one pass, for columns
// that need no gradient. It serves D <= 128 (float64: 64).
//
// Each row and split of the columns has slots [2][splits, G, M], the sum of exp2(s2 - maximum) and
// then the maximum. It also has partial [splits, G, M, D], the unnormalised sum_j exp2(s2 -
// maximum) y_j. Maxima run along, so that any logits will do.
//
// One block serves BM rows and split_columns columns of one group. Its rows stay in shared memory;
// tiles of columns pass through a ring and serve both products. The weights go from the
// accumulators to the second product's operand in registers (mma.sync, which is synchronous).
//
// Flops: 4 M N D, and M N exponentials. Bytes: N D elements per row of tiles from L2, and 4 M D
// written per split. Shared memory: 40-80 KiB. Predicted for bf16, as FlashAttention-2, which has
// this structure. At D = 128: 60-65 % of the tensor rate on sm_80 (200 TF/s) and 45 % on sm_90 (350
// TF/s). At D = 64, where exponentials cost as much as products: 50 % and 35 %.
#pragma once

#include "logits.cuh"

namespace fused_contrastive {

struct ColumnTiles {
  int i, j, end, step;
  __device__ bool valid() const { return j < end; }
  __device__ void next() { j += step; }
};

template <class P, int DB>
struct WeightedRows {
  using Acc = typename P::Acc;
  static_assert(P::WARPS_N == 1 && P::MB == 2, "a warp owns 16 whole rows");

  const RowsParams& r;
  int64_t g;
  Acc scale2;
  Acc row_sum[2], row_max[2];
  Acc out[2][DB][2];

  __device__ void operator()(Acc (&s)[2][P::NB][2], const ColumnTiles& t,
                             const unsigned char* columns) {
    const bool mask = needs_mask<P::BM, P::BN>(r.p, t.i, t.j);
    if (r.p.kind >= OTHER_KEY) {
      logits<P, true>(s, r.p, g, scale2, t.i + P::warp_row(), t.j, mask, false);
    } else {
      logits<P, false>(s, r.p, g, scale2, t.i + P::warp_row(), t.j, mask, false);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      Acc top = row_max[m];
#pragma unroll
      for (int n = 0; n < P::NB; ++n) top = fmax(top, fmax(s[m][n][0], s[m][n][1]));
      top = fmax(top, shuffle_xor(top, 1));
      top = fmax(top, shuffle_xor(top, 2));
      const Acc shift = finite(top), fade = exp_2(row_max[m] - shift);
      Acc sum = row_sum[m] * fade;
#pragma unroll
      for (int n = 0; n < P::NB; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          s[m][n][e] = exp_2(s[m][n][e] - shift);
          sum += s[m][n][e];
        }
      }
      row_sum[m] = sum;
      row_max[m] = top;
#pragma unroll
      for (int d = 0; d < DB; ++d) out[m][d][0] *= fade, out[m][d][1] *= fade;
    }
    P::template accumulate<P::NB, DB>(out, s, columns, P::BN);
  }

  __device__ void finish(int i, int split, int splits) {
    const int64_t plane = static_cast<int64_t>(r.p.G) * r.p.M;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      row_sum[m] += shuffle_xor(row_sum[m], 1);
      row_sum[m] += shuffle_xor(row_sum[m], 2);
      const int row = i + P::warp_row() + 8 * m + (lane_id() >> 2);
      if (row >= r.p.M) continue;
      const int64_t place = split * plane + g * r.p.M + row;
      Acc* slots = static_cast<Acc*>(r.slots) + place;
      if ((lane_id() & 3) == 0) slots[0] = row_sum[m], slots[splits * plane] = row_max[m];
      Acc* target = static_cast<Acc*>(r.partial) + place * r.p.D;
#pragma unroll
      for (int d = 0; d < DB; ++d) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int feature = 8 * d + 2 * (lane_id() & 3) + e;
          if (feature < r.p.D) target[feature] = out[m][d][e];
        }
      }
    }
  }
};

template <class P, int CHUNKS>
using RowsLoop = TileLoop<P, 3, true, CHUNKS>;

template <class P, int CHUNKS>
__global__ void __launch_bounds__(P::THREADS) fused_rows(const __grid_constant__ RowsParams r) {
  using Acc = typename P::Acc;
  using Element = typename P::Element;
  constexpr int DB = CHUNKS * CHUNK / static_cast<int>(sizeof(Element)) / 8;
  SHARED_MEMORY(shared);
  const Problem& p = r.p;
  const int tiles_m = ceil_div(p.M, P::BM), splits = ceil_div(p.N, r.split_columns),
            blocks = tiles_m * splits;
  const int g = static_cast<int>(blockIdx.x) / blocks,
            block = static_cast<int>(blockIdx.x) % blocks;
  const int i = block / splits * P::BM, split = block % splits, j = split * r.split_columns;
  WeightedRows<P, DB> epilogue{r, g, *static_cast<const Acc*>(p.scale) * Acc(LOG2E)};
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    epilogue.row_sum[m] = 0;
    epilogue.row_max[m] = -infinity(Acc(0));
#pragma unroll
    for (int d = 0; d < DB; ++d) epilogue.out[m][d][0] = 0, epilogue.out[m][d][1] = 0;
  }
  const ColumnTiles tiles{i, j, min(j + r.split_columns, p.N), P::BN};
  RowsLoop<P, CHUNKS>::run(operand<Element>(p.x, g, p.M, p.D), operand<Element>(p.y, g, p.N, p.D),
                           p.D, tiles, epilogue, shared);
  epilogue.finish(i, split, splits);
}

template <class P, int CHUNKS>
void launch_fused_rows(const RowsParams& r, Stream stream) {
  const int64_t blocks =
      static_cast<int64_t>(ceil_div(r.p.M, P::BM)) * ceil_div(r.p.N, r.split_columns);
  launch(fused_rows<P, CHUNKS>, r.p.G * blocks, P::THREADS, RowsLoop<P, CHUNKS>::SHARED, stream, r);
}

}  // namespace fused_contrastive
