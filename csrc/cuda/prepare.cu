// prepare computes inv = 1 / max(|x|, 1e-12) and hat = round(x inv) for the rows of a, then of b,
// and the maxima that bound the logits. terms turns upstream gradients into what pair_weight reads.
#include "row_kernels.cuh"

namespace fused_contrastive {
namespace {

constexpr int ROWS_PER_WARP = 4;
constexpr int BLOCK_ROWS = WARPS * ROWS_PER_WARP;

template <class Acc, class In>
__device__ Acc square_sum(const In* x, int D) {
  Acc square = 0;
  for (int d = lane_id(); d < D; d += 32) {
    const Acc value = static_cast<Acc>(to_float(x[d]));
    square = fma(value, value, square);
  }
  return warp_sum(square);
}

// One block serves BLOCK_ROWS rows of one set and group; further blocks serve the bias. x is read
// twice, the second time from cache, and hat is written once. The kernel is memory-bound.
// Predicted: 70 % of the copy rate for D >= 128 at 16 bit; below that accesses are of 2 bytes.
template <class Out>
__global__ void __launch_bounds__(32 * WARPS, 2) prepare(const __grid_constant__ PrepareParams p) {
  using Acc = typename Accumulation<Out>::type;
  SHARED_MEMORY(shared);
  float* largest = reinterpret_cast<float*>(shared);
  const int blocks_a = ceil_div(p.set[0].count, BLOCK_ROWS),
            blocks_b = ceil_div(p.set[1].count, BLOCK_ROWS);
  const int blocks = blocks_a + blocks_b + ceil_div(p.bias_count, 32 * WARPS);
  const int g = static_cast<int>(blockIdx.x) / blocks, warp = static_cast<int>(threadIdx.x) / 32;
  int block = static_cast<int>(blockIdx.x) % blocks, target = 0;
  float top = 0;
  if (block < blocks_a + blocks_b) {
    target = block < blocks_a ? 0 : 1;
    if (target == 1) block -= blocks_a;
    const PrepareSet& set = p.set[target];
    for (int n = 0; n < ROWS_PER_WARP; ++n) {
      const int row = block * BLOCK_ROWS + n * WARPS + warp;
      if (row >= set.count) break;
      const int64_t place = static_cast<int64_t>(g) * set.count + row;
      Acc square = 0, factor = 1;
      with_type(set.input, [&](auto zero) {
        square = square_sum<Acc>(static_cast<const decltype(zero)*>(set.x) + place * p.D, p.D);
      });
      // The smallest norm that divides, 1e-12.
      const Acc floor = smallest_norm(square);
      if (p.normalize) {
        factor = square < floor * floor ? Acc(1) / floor : inverse_root(square);
        if (lane_id() == 0) static_cast<Acc*>(set.inv)[place] = factor;
      } else {
        const float norm =
            static_cast<float>(square > Acc(0) ? square * inverse_root(square) : square);
        top = larger(top, norm);
      }
      if (set.hat == nullptr) continue;
      Out* hat = static_cast<Out*>(set.hat) + place * p.D;
      with_type(set.input, [&](auto zero) {
        const auto* x = static_cast<const decltype(zero)*>(set.x) + place * p.D;
        for (int d = lane_id(); d < p.D; d += 32)
          from_float(static_cast<Acc>(to_float(x[d])) * factor, hat[d]);
      });
    }
    if (p.normalize) return;  // The norms are 1.
  } else {
    target = 2;
    const int column = (block - blocks_a - blocks_b) * 32 * WARPS + static_cast<int>(threadIdx.x);
    if (column < p.bias_count) {
      const Acc value =
          static_cast<const Acc*>(p.bias)[static_cast<int64_t>(g) * p.bias_count + column];
      top = value == -infinity(value) ? 0.0f : static_cast<float>(fabs(value));
    }
  }
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) top = larger(top, shuffle_xor(top, bit));
  if (lane_id() == 0) largest[warp] = top;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < WARPS; ++w) top = larger(top, largest[w]);
  atomic_raise(p.bound + 3 * g + target, top);
}

// Writes weight exp(s - lse) as factor exp2(s2 - level). The level is whole, so that it and the
// subtraction are exact, and its distance from lse log2(e) goes into the factor. A row without
// candidates has no gradient: its level is 0 and its factor is 0 (NaN for a NaN).
template <class Acc>
__device__ void store_terms(void* terms, int64_t index, const LogSum& lse, Acc weight) {
  Acc* target = static_cast<Acc*>(terms) + 2 * index;
  const bool empty = lse.value == -infinity(lse.value);
  // Of large logits the second part of a log-sum-exp matters for its level, too.
  const Acc level = static_cast<Acc>(rint(fma(lse.value, LOG2E, lse.lost * LOG2E)));
  const double below =
      fma(lse.value, LOG2E, -static_cast<double>(level)) + lse.value * LOG2E_LOW + lse.lost * LOG2E;
  // Beyond 2^44 two floats no longer hold how far a log-sum-exp is from its largest logit.
  const bool held = sizeof(Acc) == 8 || fabs(static_cast<double>(level)) < 0x1p44;
  target[0] = empty ? Acc(0) : level;
  target[1] = empty ? Acc(0) * weight : static_cast<Acc>(weight * exp_2(held ? -below : 0.0));
}

// The unit of float16 weights that are at most `largest` after the sigmoids and `size` before them.
// 2^-60 of `size` is far below what float16 can hold of a gradient. Dividing by less would overflow
// once all rows have converged.
template <class Acc>
__device__ Acc unit_of(Acc largest, Acc size) {
  if (size == Acc(0)) return size;
  return larger(larger(largest, size * Acc(0x1p-60)), Acc(1e-30));
}

// row_terms [G, M, 2] and col_terms [G, N, 2] hold (level, factor). pull [G, M] is minus the
// gradient of the positive's logit. `unit` becomes the largest total weight of a row or column (see
// unit_of). With a positive the level is that of log(exp(lse) + exp(pos)): nothing cancels, and no
// weight underflows, when the loss vanishes. Each row has a thread; O(M + N) bytes.
template <class Acc>
__global__ void __launch_bounds__(32 * WARPS, 2) terms(const __grid_constant__ TermsParams p) {
  const int blocks = ceil_div(max(p.M, p.N), 32 * WARPS), g = static_cast<int>(blockIdx.x) / blocks;
  const int index =
      static_cast<int>(blockIdx.x) % blocks * 32 * WARPS + static_cast<int>(threadIdx.x);
  const int64_t row = static_cast<int64_t>(g) * p.M + index;
  const int64_t row_plane = static_cast<int64_t>(p.G) * p.M,
                col_plane = static_cast<int64_t>(p.G) * p.N;
  // The largest total weight of a row or column, and the largest before the sigmoids.
  Acc largest = 0, size = 0;
  if (index < p.M) {
    LogSum lse = load_lse<Acc>(p.rows, row_plane, row);
    Acc weight = static_cast<const Acc*>(p.g_rows)[p.same_g_rows ? 0 : row];
    if (p.pos != nullptr) {
      const Acc target = static_cast<const Acc*>(p.pos)[row];
      weight += static_cast<Acc>(lse.undefined(target));
      LogSum col_lse{};
      const int64_t column = static_cast<int64_t>(g) * p.N + (index + p.positive) % p.N;
      if (p.cols != nullptr) {
        col_lse = load_lse<Acc>(p.cols, col_plane, column);
        weight = weight / 2 + static_cast<Acc>(col_lse.undefined(target));
      }
      size = fabs(weight);
      Acc total = weight * sigmoid(static_cast<Acc>(lse.excess(target)));
      largest = fabs(total);
      if (p.cols != nullptr) {
        const Acc pull = weight * sigmoid(static_cast<Acc>(col_lse.excess(target)));
        store_terms(p.col_terms, column, logaddexp(col_lse, target), weight);
        total += pull;
        largest = larger(largest, fabs(pull));
      }
      static_cast<Acc*>(p.pull)[row] = total;
      lse = logaddexp(lse, target);
    } else {
      largest = size = fabs(weight);
    }
    store_terms(p.row_terms, row, lse, weight);
  }
  if (p.pos == nullptr && p.cols != nullptr && index < p.N) {
    const int64_t column = static_cast<int64_t>(g) * p.N + index;
    const Acc weight = static_cast<const Acc*>(p.g_cols)[p.same_g_cols ? 0 : column];
    store_terms(p.col_terms, column, load_lse<Acc>(p.cols, col_plane, column), weight);
    largest = larger(largest, fabs(weight)), size = larger(size, fabs(weight));
  }
  if (p.unit == nullptr) return;
  float top = static_cast<float>(unit_of(largest, size));
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) top = larger(top, shuffle_xor(top, bit));
  if (lane_id() == 0) atomic_raise(p.unit, top);
}

}  // namespace

void launch_prepare(const PrepareParams& p, Type matrix, Stream stream) {
  const int64_t blocks = ceil_div(p.set[0].count, BLOCK_ROWS) +
                         ceil_div(p.set[1].count, BLOCK_ROWS) + ceil_div(p.bias_count, 32 * WARPS);
  with_matrix(matrix, [&](auto zero) {
    launch(prepare<decltype(zero)>, p.G * blocks, 32 * WARPS,
           WARPS * static_cast<int>(sizeof(float)), stream, p);
  });
}

void launch_terms(const TermsParams& p, Type matrix, Stream stream) {
  const int64_t blocks = static_cast<int64_t>(p.G) * ceil_div(p.M > p.N ? p.M : p.N, 32 * WARPS);
  launch(matrix == Type::f64 ? terms<double> : terms<float>, blocks, 32 * WARPS, 0, stream, p);
}

}  // namespace fused_contrastive
