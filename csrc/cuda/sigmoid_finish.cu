// sigmoid_finish adds up sigmoid_reduce's partial results in a fixed order and computes the
// positives. sigmoid_terms computes what sigmoid_weight and finish_backward read of the rows.
#include "row_kernels.cuh"
#include "sigmoid.h"

namespace fused_contrastive {
namespace {

// The rows of a block of sigmoid_finish. Each lane has one row, and the warps share the slots.
constexpr int FINISHED = 32;

// Computes the rows' sums, the positives' logits with their softplus(-y), and maxima. One block
// serves FINISHED rows of one group. Bytes: 4 (float64: 8) M S of slots, and with a positive 2 M D
// elements. Predicted: 70 % of the copy rate.
template <class T>
__global__ void __launch_bounds__(32 * WARPS, 2)
    sigmoid_finish(const __grid_constant__ SigmoidFinishParams p) {
  using Acc = typename Accumulation<T>::type;
  SHARED_MEMORY(shared);
  Acc* sums = reinterpret_cast<Acc*>(shared);  // [WARPS][FINISHED]
  Acc *maxima = sums + WARPS * FINISHED, *targets = maxima + WARPS * FINISHED;
  const int blocks = ceil_div(p.M, FINISHED), warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t g = static_cast<int>(blockIdx.x) / blocks;
  const int first = static_cast<int>(blockIdx.x) % blocks * FINISHED, index = first + lane_id();
  const int64_t plane = static_cast<int64_t>(p.G) * p.M, row = g * p.M + index;
  const bool inside = index < p.M;
  const Acc* slots = static_cast<const Acc*>(p.slots) + row;
  Acc sum = 0, top = -infinity(Acc(0));
  for (int s = warp; inside && s < p.supers; s += WARPS) {
    sum += slots[s * plane];
    if (p.row_max != nullptr) top = fmax(top, slots[(p.supers + s) * plane]);
  }
  sums[warp * FINISHED + lane_id()] = sum;
  maxima[warp * FINISHED + lane_id()] = top;
  if (p.pos != nullptr) {
    for (int n = warp; n < FINISHED && first + n < p.M; n += WARPS) {
      const int64_t partner = (first + n + p.positive) % p.N;
      const T* x = static_cast<const T*>(p.x) + (g * p.M + first + n) * p.D;
      const T* y = static_cast<const T*>(p.y) + (g * p.N + partner) * p.D;
      Acc target = 0;
      for (int d = lane_id(); d < p.D; d += 32)
        target = fma(to_float(x[d]), to_float(y[d]), target);
      target = warp_sum(target);
      if (lane_id() == 0) targets[n] = target;
    }
  }
  __syncthreads();
  if (warp != 0 || !inside) return;
  for (int w = 1; w < WARPS; ++w) {
    sum += sums[w * FINISHED + lane_id()];
    top = fmax(top, maxima[w * FINISHED + lane_id()]);
  }
  sum *= Acc(LN2);
  if (p.row_max != nullptr) static_cast<Acc*>(p.row_max)[row] = top * Acc(LN2);
  if (p.pos != nullptr) {  // The positive is scaled as the tiles' logits are.
    const Acc factor = Acc(LOG2E) * Acc(p.sign);
    const Acc shift =
        p.row_bias == nullptr ? Acc(0) : static_cast<const Acc*>(p.row_bias)[row] * factor;
    const Acc y =
        fma(targets[lane_id()], *static_cast<const Acc*>(p.scale) * factor, shift) * Acc(LN2);
    static_cast<Acc*>(p.pos)[row] = y * Acc(p.sign);
    sum += softplus(-y);
  }
  static_cast<Acc*>(p.rows)[row] = sum;
}

// row_terms is (row_bias in base 2, g), both times sign. `pull` is minus the weight of the
// positive. `unit` is the largest finite |g|, at least 1e-30 where there is one. Each row has a
// thread; O(M) bytes.
template <class Acc>
__global__ void __launch_bounds__(32 * WARPS, 2)
    sigmoid_terms(const __grid_constant__ SigmoidTermsParams p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 32 * WARPS + static_cast<int>(threadIdx.x);
  Acc size = 0;
  if (row < static_cast<int64_t>(p.G) * p.M) {
    const Acc sign = static_cast<Acc>(p.sign),
              weight = sign * static_cast<const Acc*>(p.g)[p.same_g ? 0 : row];
    const Acc* bias = static_cast<const Acc*>(p.row_bias);
    Acc* terms = static_cast<Acc*>(p.row_terms) + 2 * row;
    terms[0] = bias == nullptr ? Acc(0) : bias[p.same_bias ? 0 : row] * (Acc(LOG2E) * sign);
    terms[1] = weight;
    if (p.pos != nullptr) {
      static_cast<Acc*>(p.pull)[row] =
          weight * sigmoid(-sign * static_cast<const Acc*>(p.pos)[row]);
    }
    size = fabs(weight) < infinity(weight) ? fabs(weight) : Acc(0);
  }
  if (p.unit == nullptr) return;
  float top = size > Acc(0) ? larger(static_cast<float>(size), 1e-30f) : 0.0f;
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) top = larger(top, shuffle_xor(top, bit));
  if (lane_id() == 0) atomic_raise(p.unit, top);
}

}  // namespace

void launch_sigmoid_finish(const SigmoidFinishParams& p, Type matrix, Stream stream) {
  const int64_t blocks = static_cast<int64_t>(p.G) * ceil_div(p.M, FINISHED);
  with_matrix(matrix, [&](auto zero) {
    using Acc = typename Accumulation<decltype(zero)>::type;
    constexpr int SHARED = static_cast<int>(sizeof(Acc)) * (2 * WARPS + 1) * FINISHED;
    launch(sigmoid_finish<decltype(zero)>, blocks, 32 * WARPS, SHARED, stream, p);
  });
}

void launch_sigmoid_terms(const SigmoidTermsParams& p, Type matrix, Stream stream) {
  const int64_t blocks =
      ceil_div(static_cast<int64_t>(p.G) * p.M, static_cast<int64_t>(32 * WARPS));
  launch(matrix == Type::f64 ? sigmoid_terms<double> : sigmoid_terms<float>, blocks, 32 * WARPS, 0,
         stream, p);
}

}  // namespace fused_contrastive
