// finish_forward and finish_weighted merge partial results in a fixed order, then compute positives
// and losses. finish_backward computes the gradients of the inputs.
#include "row_kernels.cuh"

namespace fused_contrastive {
namespace {

// The rows of a block of finish_forward. Each lane has one row, and the warps share the slots.
constexpr int MERGE_ROWS = 32;

template <class Acc>
struct Partial {
  Acc maximum, sum;
};

// This warp's share of `count` slots; each lane has one row.
template <class Acc>
__device__ Partial<Acc> merge_share(const Acc* slots, int64_t stride, int64_t planes, int count,
                                    bool inside) {
  Partial<Acc> part{-infinity(Acc(0)), Acc(0)};
  if (!inside) return part;
  for (int s = static_cast<int>(threadIdx.x) / 32; s < count; s += WARPS) {
    fold(part.maximum, part.sum, slots[s * stride + planes], slots[s * stride]);
  }
  return part;
}

template <class Acc>
__device__ Partial<Acc> merge_shares(const Partial<Acc>* shares) {
  Partial<Acc> part = shares[lane_id()];
  for (int w = 1; w < WARPS; ++w) {
    const Partial<Acc> other = shares[w * 32 + lane_id()];
    fold(part.maximum, part.sum, other.maximum, other.sum);
  }
  return part;
}

// Computes the log-sum-exps of rows and columns from pair_reduce's slots, the positives' logits,
// softplus(lse - pos), and maxima. One block serves MERGE_ROWS rows of one group with the columns
// of the same index. With a positive it serves the columns that are those rows' positives. Bytes: 8
// (M + N) S of slots, and with a positive 2 M D elements. Predicted: 70 % of the copy rate.
template <class T>
__global__ void __launch_bounds__(32 * WARPS, 2)
    finish_forward(const __grid_constant__ FinishForwardParams p) {
  using Acc = typename Accumulation<T>::type;
  SHARED_MEMORY(shared);
  Partial<Acc>* shares = reinterpret_cast<Partial<Acc>*>(shared);  // [2][WARPS][32]
  Acc* targets = reinterpret_cast<Acc*>(shares + 2 * WARPS * 32);  // [32], in base 2
  const int blocks = ceil_div(max(p.M, p.N), MERGE_ROWS);
  const int64_t g = static_cast<int>(blockIdx.x) / blocks;
  const int first = static_cast<int>(blockIdx.x) % blocks * MERGE_ROWS, index = first + lane_id();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const bool paired = p.pos != nullptr, inside = index < p.M;
  const int column = paired ? (index + p.positive) % p.N : index;
  const bool column_inside = paired ? inside : index < p.N;
  const int row_slots = ceil_div(p.N, p.super_rows) + p.symmetric,
            col_slots = ceil_div(p.M, p.super_rows);
  const int64_t row_stride = static_cast<int64_t>(p.G) * p.M,
                col_stride = static_cast<int64_t>(p.G) * p.N;
  const Acc* slots = static_cast<const Acc*>(p.slots);
  const Acc* column_slots = slots + 2 * row_stride * row_slots;
  shares[warp * 32 + lane_id()] =
      merge_share(slots + g * p.M + index, row_stride, row_stride * row_slots, row_slots, inside);
  if (p.cols != nullptr) {
    shares[(WARPS + warp) * 32 + lane_id()] =
        merge_share(column_slots + g * p.N + column, col_stride, col_stride * col_slots, col_slots,
                    column_inside);
  }
  if (paired) {
    for (int n = warp; n < MERGE_ROWS && first + n < p.M; n += WARPS) {
      const int64_t partner = (first + n + p.positive) % p.N;
      const T* x = static_cast<const T*>(p.x) + (g * p.M + first + n) * p.D;
      const T* y = static_cast<const T*>(p.y) + (g * p.N + partner) * p.D;
      Acc sum = 0;
      for (int d = lane_id(); d < p.D; d += 32) sum = fma(to_float(x[d]), to_float(y[d]), sum);
      // The factor is that of the tiles' logits, so that common roundings cancel in lse - pos.
      const Acc shift = p.bias == nullptr
                            ? Acc(0)
                            : static_cast<const Acc*>(p.bias)[g * p.N + partner] * Acc(LOG2E);
      sum = fma(warp_sum(sum), *static_cast<const Acc*>(p.scale) * Acc(LOG2E), shift);
      if (lane_id() == 0) targets[n] = sum;
    }
  }
  __syncthreads();
  if (warp != 0) return;
  const int64_t row = g * p.M + index;
  const Partial<Acc> of_row = merge_shares(shares);
  const LogSum lse = log_sum(of_row.maximum, of_row.sum);
  LogSum col_lse{};
  if (inside) {
    store_lse<Acc>(p.rows, row_stride, row, lse);
    if (p.row_max != nullptr) static_cast<Acc*>(p.row_max)[row] = of_row.maximum * Acc(LN2);
  }
  if (p.cols != nullptr) {
    const Partial<Acc> of_column = merge_shares(shares + WARPS * 32);
    col_lse = log_sum(of_column.maximum, of_column.sum);
    if (column_inside) {
      store_lse<Acc>(p.cols, col_stride, g * p.N + column, col_lse);
      if (p.col_max != nullptr)
        static_cast<Acc*>(p.col_max)[g * p.N + column] = of_column.maximum * Acc(LN2);
    }
  }
  if (!paired || !inside) return;
  const double target = static_cast<double>(targets[lane_id()]) * LN2;
  static_cast<Acc*>(p.pos)[row] = static_cast<Acc>(target);
  Acc value = softplus(static_cast<Acc>(lse.excess(target) + lse.undefined(target)));
  if (p.cols != nullptr) {
    value =
        (value + softplus(static_cast<Acc>(col_lse.excess(target) + col_lse.undefined(target)))) /
        2;
  }
  static_cast<Acc*>(p.loss)[row] = value;
}

// Computes log-sum-exp, maximum and softmax-weighted mean [G, M, D] from fused_rows' partial
// results. Each row has a warp. Bytes: 4 (splits + 1) M D.
template <class Acc>
__global__ void __launch_bounds__(32 * WARPS, 2)
    finish_weighted(const __grid_constant__ FinishWeightedParams p) {
  const int64_t rows = static_cast<int64_t>(p.G) * p.M;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * WARPS + static_cast<int>(threadIdx.x) / 32;
  if (row >= rows) return;
  const Acc* sums = static_cast<const Acc*>(p.slots) + row;
  const Acc* maxima = sums + p.splits * rows;
  Acc top = -infinity(Acc(0)), total = 0;
  for (int s = 0; s < p.splits; ++s) top = fmax(top, maxima[s * rows]);
  const Acc shift = finite(top);
  for (int s = 0; s < p.splits; ++s) total += sums[s * rows] * exp_2(maxima[s * rows] - shift);
  if (lane_id() == 0) {
    store_lse<Acc>(p.rows, rows, row, log_sum(top, total));
    if (p.row_max != nullptr) static_cast<Acc*>(p.row_max)[row] = top * Acc(LN2);
  }
  const Acc share = Acc(1) / (total == Acc(0) ? Acc(1) : total);
  const Acc* partial = static_cast<const Acc*>(p.partial);
  for (int d = lane_id(); d < p.D; d += 32) {
    Acc value = 0;
    for (int s = 0; s < p.splits; ++s)
      value += partial[(s * rows + row) * p.D + d] * exp_2(maxima[s * rows] - shift);
    static_cast<Acc*>(p.mean)[row * p.D + d] = value * share;
  }
}

// dx = scale (G - <u, G> u) inv with u = given * inv, in the type of dx and given. `radial`
// receives this block's sum of <x, G> in float64 (half of it with `halved`), for the gradient of
// the scale.
// G is `gradient`, an unscaled product with W, less the pull of the positives. With `near`, x are
// rows whose positives are y[(i + positive) % Y]. With `far`, x are the positives of y[(j -
// positive) % X]. One set has both. Rows below the norm floor are not projected.
// Each row has a warp. Bytes: (4 to 8 + 3 to 8) X D read, the second reading from cache. Predicted:
// 70 % of the copy rate.
template <class T>
__global__ void __launch_bounds__(32 * WARPS, 2)
    finish_backward(const __grid_constant__ FinishBackwardParams p) {
  using Acc = typename Accumulation<T>::type;
  static_assert(FINISH_ROWS == WARPS, "a warp per row");
  SHARED_MEMORY(shared);
  double* inner_sums = reinterpret_cast<double*>(shared);
  const int blocks = ceil_div(p.X, WARPS), warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t g = static_cast<int>(blockIdx.x) / blocks;
  const int index = static_cast<int>(blockIdx.x) % blocks * WARPS + warp;
  Acc inner = 0;
  if (index < p.X) {
    const int64_t row = (g * p.X + index) * p.D;
    const T* x = static_cast<const T*>(p.x) + row;
    const T* other = static_cast<const T*>(p.y) + g * p.Y * p.D;
    const T *near = other, *far = other;
    const Acc* pull = static_cast<const Acc*>(p.pull);
    Acc near_pull = 0, far_pull = 0;
    if (p.near) {
      near = other + static_cast<int64_t>((index + p.positive) % p.Y) * p.D;
      near_pull = pull[g * p.X + index];
    }
    if (p.far) {
      const int64_t anchor = (static_cast<int64_t>(index) + p.X - p.positive) % p.X;
      if (anchor < p.Y) {
        far = other + anchor * p.D;
        far_pull = pull[g * p.Y + anchor];
      }
    }
    const Acc unit = p.unit == nullptr ? Acc(1) : static_cast<Acc>(*p.unit) / Acc(8192);
    const Acc* gradient = static_cast<const Acc*>(p.gradient) + row;
    auto total = [&](int d) {
      Acc value = gradient[d] * unit;
      if (p.near) value -= near_pull * static_cast<Acc>(to_float(near[d]));
      if (p.far) value -= far_pull * static_cast<Acc>(to_float(far[d]));
      return value;
    };
    if (p.radial != nullptr) {
      for (int d = lane_id(); d < p.D; d += 32)
        inner = fma(static_cast<Acc>(to_float(x[d])), total(d), inner);
      inner = warp_sum(inner);
    }
    if (p.dx != nullptr) {
      Acc factor = *static_cast<const Acc*>(p.scale);
      const Acc inv = p.inv == nullptr ? Acc(1) : static_cast<const Acc*>(p.inv)[g * p.X + index];
      factor *= inv;
      with_type(p.output, [&](auto zero) {
        using Output = decltype(zero);
        Output* dx = static_cast<Output*>(p.dx) + row;
        if (p.inv == nullptr || inv >= Acc(0.99999e12)) {
          for (int d = lane_id(); d < p.D; d += 32) from_float(total(d) * factor, dx[d]);
          return;
        }
        const Output* given = static_cast<const Output*>(p.given) + row;
        const auto direction = [&](int d) { return static_cast<Acc>(to_float(given[d])) * inv; };
        Acc along = 0;
        for (int d = lane_id(); d < p.D; d += 32) along = fma(direction(d), total(d), along);
        along = warp_sum(along);
        for (int d = lane_id(); d < p.D; d += 32)
          from_float((total(d) - along * direction(d)) * factor, dx[d]);
      });
    }
  }
  if (p.radial == nullptr) return;
  if (lane_id() == 0) inner_sums[warp] = inner;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (int w = 0; w < WARPS; ++w) sum += inner_sums[w];
  p.radial[blockIdx.x] = p.halved ? sum / 2 : sum;
}

}  // namespace

void launch_finish_forward(const FinishForwardParams& p, Type matrix, Stream stream) {
  const int64_t blocks = static_cast<int64_t>(p.G) * ceil_div(p.M > p.N ? p.M : p.N, MERGE_ROWS);
  with_matrix(matrix, [&](auto zero) {
    using Acc = typename Accumulation<decltype(zero)>::type;
    constexpr int SHARED = static_cast<int>(sizeof(Acc)) * (4 * WARPS * 32 + MERGE_ROWS);
    launch(finish_forward<decltype(zero)>, blocks, 32 * WARPS, SHARED, stream, p);
  });
}

void launch_finish_weighted(const FinishWeightedParams& p, Type matrix, Stream stream) {
  const int64_t blocks = ceil_div(static_cast<int64_t>(p.G) * p.M, static_cast<int64_t>(WARPS));
  launch(matrix == Type::f64 ? finish_weighted<double> : finish_weighted<float>, blocks, 32 * WARPS,
         0, stream, p);
}

void launch_finish_backward(const FinishBackwardParams& p, Type matrix, Stream stream) {
  const int64_t blocks = static_cast<int64_t>(p.G) * ceil_div(p.X, WARPS);
  with_matrix(matrix, [&](auto zero) {
    launch(finish_backward<decltype(zero)>, blocks, 32 * WARPS,
           WARPS * static_cast<int>(sizeof(double)), stream, p);
  });
}

}  // namespace fused_contrastive
