// What follows force_rows.cuh: merging partial results in a fixed order, and the norms of the
// forces.
#pragma once

#include "force_distance.cuh"

namespace fused_contrastive {

// Merges the parts into lse (in two parts), or into shift and total. Each element has a thread.
// Bytes: 8 (splits + 1) per element (float64: 16).
template <class T>
__global__ void __launch_bounds__(32 * WARPS, 2)
    force_merge(const __grid_constant__ ForceMergeParams p) {
  using Acc = typename Accumulation<T>::type;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (32 * WARPS) + threadIdx.x;
  if (n >= p.count) return;
  Acc maximum = -infinity(Acc(0)), sum = 0;
  for (int s = 0; s < p.splits; ++s) {
    const int64_t place = s * p.count + n;
    merge_sums(maximum, sum, static_cast<const Acc*>(p.maxima)[place],
               static_cast<const Acc*>(p.sums)[place]);
  }
  if (p.lse != nullptr) {
    LogOfSum<Acc>(maximum, sum).store(p.lse, p.count, n);
  } else {
    static_cast<Acc*>(p.shift)[n] = maximum, static_cast<Acc*>(p.total)[n] = sum;
  }
}

// Computes log_norm [K, G], and unrounded as `wide`. With rms it comes from squares [splits, K, G,
// P], else (separate) from shift [2, K, G, rows] and apart [splits, 2, K, G, rows]. Each
// temperature and group has a block. Bytes: 8 per element read (without rms 4).
template <class T>
__global__ void __launch_bounds__(32 * WARPS, 2)
    force_norms(const __grid_constant__ ForceParams p) {
  using Acc = typename Accumulation<T>::type;
  SHARED_MEMORY(shared);
  double* parts = reinterpret_cast<double*>(shared);  // [2][WARPS]: maxima, sums
  const int64_t plane = blockIdx.x, planes = static_cast<int64_t>(p.K) * p.G;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  double maximum = -infinity(0.0), sum = 0;
  if (p.rms) {
    const double* squares = static_cast<const double*>(p.squares) + plane * p.P;
    for (int s = 0; s < p.splits; ++s, squares += planes * p.P) {
      for (int n = static_cast<int>(threadIdx.x); n < p.P; n += 32 * WARPS)
        merge_log(maximum, sum, squares[n]);
    }
    merge_lanes(maximum, sum, 32);
  } else {
    const Acc *shift = static_cast<const Acc*>(p.shift) + plane * p.rows,
              *positive = shift + planes * p.rows;
    const Acc* apart = static_cast<const Acc*>(p.apart) + plane * p.rows;
    for (int s = 0; s < p.splits; ++s, apart += 2 * planes * p.rows) {
      for (int n = static_cast<int>(threadIdx.x); n < p.rows; n += 32 * WARPS) {
        const Acc exponent = fmax(positive[n] + apart[n], shift[n] + apart[planes * p.rows + n]);
        maximum = larger(maximum, static_cast<double>(exponent));
      }
    }
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) maximum = larger(maximum, shuffle_xor(maximum, bit));
  }
  if (lane_id() == 0) parts[warp] = maximum, parts[WARPS + warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  const double log_norm =
      log_norm_of(parts, unit_scale<Acc>(p.scale, static_cast<int>(plane % p.G)), p);
  static_cast<Acc*>(p.log_norm)[plane] = static_cast<Acc>(log_norm);
  static_cast<double*>(p.wide)[plane] = log_norm;
}

}  // namespace fused_contrastive
