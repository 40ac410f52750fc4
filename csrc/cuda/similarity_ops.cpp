// Torch operators over the kernels of the similarity family, written against the LibTorch stable
// ABI. The Python side, fused_contrastive/backends/cuda, allocates every output and workspace,
// passes absent tensors as empty ones, and checks shapes. Here are only pointers, sizes and the
// stream. force_ops.cpp and sigmoid_ops.cpp have the other families' operators.
#include "pair_operators.h"

namespace fused_contrastive {
namespace {

const TileKernels& kernels(const Tensor& x, int64_t float32) {
  switch (type(x)) {
    case Type::bf16:
      return BF16_KERNELS;
    case Type::f16:
      return F16_KERNELS;
    case Type::f64:
      return F64_KERNELS;
    default:
      break;
  }
  switch (static_cast<Float32>(float32)) {
    case Float32::tf32:
      return TF32_KERNELS;
    case Float32::tf32x3:
      return TF32X3_KERNELS;
    default:
      return FMA_KERNELS;
  }
}

// The kernels over pairs: on sm_90 those with tensor copies, where these can read both matrices.
const PairKernels& pair_kernels(const Tensor& x, const Tensor& y, int64_t float32) {
  if (by_tensor_copies(x, y)) return type(x) == Type::bf16 ? BF16_SM90_KERNELS : F16_SM90_KERNELS;
  return kernels(x, float32).pairs;
}

void prepare(Tensor a, OptionalTensor b, OptionalTensor bias, Tensor a_hat, Tensor b_hat,
             Tensor a_inv, Tensor b_inv, Tensor bound, Tensor like, bool normalize) {
  const Queue queue(a);
  PrepareParams p{};
  p.set[0] = {pointer(a), pointer(a_hat), pointer(a_inv), type(a), size(a, 1)};
  if (b.has_value()) p.set[1] = {pointer(b), pointer(b_hat), pointer(b_inv), type(*b), size(*b, 1)};
  p.bias = pointer(bias);
  p.bias_count = bias.has_value() ? size(*bias, 1) : 0;
  p.bound = static_cast<float*>(pointer(bound));
  p.G = size(a, 0), p.D = size(a, 2), p.normalize = normalize;
  launch_prepare(p, type(like), queue.stream());
}

void pair_reduce(Tensor x, Tensor y, OptionalTensor bias, OptionalTensor key_a,
                 OptionalTensor key_b, Tensor scale, Tensor bound, Tensor slots, int64_t kind,
                 int64_t offset, int64_t stride, int64_t super_rows, bool symmetric, bool columns,
                 bool normalized, bool extrema, int64_t float32) {
  const Queue queue(x);
  ReduceParams r{};
  r.p = problem(x, y, bias, key_a, key_b, scale, kind, offset, stride);
  r.bound = static_cast<const float*>(pointer(bound)), r.slots = pointer(slots);
  r.super_rows = static_cast<int>(super_rows);
  r.symmetric = symmetric, r.columns = columns, r.normalized = normalized, r.extrema = extrema;
  pair_kernels(x, y, float32).pair_reduce(r, queue.stream());
}

void finish_forward(Tensor slots, Tensor x, Tensor y, OptionalTensor bias, Tensor scale,
                    Tensor rows, Tensor cols, Tensor pos, Tensor loss, Tensor row_max,
                    Tensor col_max, int64_t positive, int64_t super_rows, bool symmetric) {
  const Queue queue(x);
  FinishForwardParams p{};
  p.slots = pointer(slots), p.x = pointer(x), p.y = pointer(y), p.bias = pointer(bias),
  p.scale = pointer(scale);
  p.rows = pointer(rows), p.cols = pointer(cols), p.pos = pointer(pos), p.loss = pointer(loss);
  p.row_max = pointer(row_max), p.col_max = pointer(col_max);
  p.G = size(x, 0), p.M = size(x, 1), p.N = size(y, 1), p.D = size(x, 2);
  p.positive = static_cast<int>(positive), p.super_rows = static_cast<int>(super_rows),
  p.symmetric = symmetric;
  launch_finish_forward(p, type(x), queue.stream());
}

void fused_rows(Tensor x, Tensor y, OptionalTensor bias, OptionalTensor key_a, OptionalTensor key_b,
                Tensor scale, Tensor slots, Tensor partial, int64_t kind, int64_t offset,
                int64_t stride, int64_t split_columns, int64_t float32) {
  const Queue queue(x);
  RowsParams r{};
  r.p = problem(x, y, bias, key_a, key_b, scale, kind, offset, stride);
  STD_TORCH_CHECK(r.p.D <= (type(x) == Type::f64 ? 64 : 128),
                  "fused_rows takes D up to 128 (float64: 64), got ", r.p.D);
  r.slots = pointer(slots), r.partial = pointer(partial),
  r.split_columns = static_cast<int>(split_columns);
  kernels(x, float32).fused_rows(r, queue.stream());
}

void finish_weighted(Tensor slots, Tensor partial, Tensor rows, Tensor row_max, Tensor mean,
                     Tensor like) {
  const Queue queue(rows);
  FinishWeightedParams p{};
  p.slots = pointer(slots), p.partial = pointer(partial);
  p.rows = pointer(rows), p.row_max = pointer(row_max), p.mean = pointer(mean);
  p.G = size(mean, 0), p.M = size(mean, 1), p.D = size(mean, 2), p.splits = size(partial, 0);
  launch_finish_weighted(p, type(like), queue.stream());
}

void terms(Tensor g_rows, Tensor g_cols, Tensor rows, Tensor cols, Tensor pos, Tensor row_terms,
           Tensor col_terms, Tensor pull, Tensor unit, int64_t positive) {
  const Queue queue(rows);
  TermsParams p{};
  p.g_rows = pointer(g_rows), p.g_cols = pointer(g_cols), p.rows = pointer(rows),
  p.cols = pointer(cols), p.pos = pointer(pos);
  p.row_terms = pointer(row_terms), p.col_terms = pointer(col_terms), p.pull = pointer(pull);
  p.unit = static_cast<float*>(pointer(unit));
  p.G = size(rows, 1), p.M = size(g_rows, 1),
  p.N = p.cols == nullptr ? p.M : static_cast<int>(cols.size(2));
  p.positive = static_cast<int>(positive), p.same_g_rows = expanded(g_rows),
  p.same_g_cols = expanded(g_cols);
  launch_terms(p, type(rows), queue.stream());
}

void pair_weight(Tensor x, Tensor y, OptionalTensor bias, OptionalTensor key_a,
                 OptionalTensor key_b, Tensor scale, Tensor row_terms, Tensor col_terms,
                 Tensor unit, Tensor panel, int64_t kind, int64_t offset, int64_t stride,
                 bool mirror, int64_t float32) {
  const Queue queue(x);
  WeightParams w{};
  w.p = problem(x, y, bias, key_a, key_b, scale, kind, offset, stride);
  w.row_terms = pointer(row_terms), w.col_terms = pointer(col_terms), w.unit = pointer(unit);
  w.panel = pointer(panel), w.mirror = mirror;
  pair_kernels(x, y, float32).pair_weight(w, queue.stream());
}

void finish_backward(Tensor gradient, Tensor x, Tensor y, Tensor given, Tensor inv, Tensor pull,
                     Tensor scale, Tensor unit, Tensor dx, Tensor radial, int64_t positive,
                     bool near, bool far, bool halved) {
  const Queue queue(x);
  FinishBackwardParams p{};
  p.gradient = pointer(gradient), p.x = pointer(x), p.y = pointer(y), p.inv = pointer(inv),
  p.pull = pointer(pull);
  p.given = pointer(given), p.scale = pointer(scale),
  p.unit = static_cast<const float*>(pointer(unit));
  p.dx = pointer(dx), p.radial = static_cast<double*>(pointer(radial)), p.output = type(dx);
  p.G = size(x, 0), p.X = size(x, 1), p.Y = size(y, 1), p.D = size(x, 2),
  p.positive = static_cast<int>(positive);
  p.near = near, p.far = far, p.halved = halved;
  launch_finish_backward(p, type(x), queue.stream());
}

}  // namespace
}  // namespace fused_contrastive

using namespace fused_contrastive;

#define PROBLEM "Tensor x, Tensor y, Tensor? bias, Tensor? key_a, Tensor? key_b, Tensor scale, "
#define CANDIDATES "int kind, int offset, int stride, "

STABLE_TORCH_LIBRARY(NAMESPACE, m) {
  m.def(
      "prepare(Tensor a, Tensor? b, Tensor? bias, Tensor(a!) a_hat, Tensor(b!) b_hat, "
      "Tensor(c!) a_inv, Tensor(d!) b_inv, Tensor(e!) bound, Tensor like, bool normalize) -> ()");
  m.def("pair_reduce(" PROBLEM "Tensor bound, Tensor(a!) slots, " CANDIDATES
        "int super_rows, bool symmetric, bool columns, bool normalized, bool extrema, int float32) "
        "-> ()");
  m.def(
      "finish_forward(Tensor slots, Tensor x, Tensor y, Tensor? bias, Tensor scale, "
      "Tensor(a!) rows, Tensor(b!) cols, Tensor(c!) pos, Tensor(d!) loss, Tensor(e!) row_max, "
      "Tensor(f!) col_max, int positive, int super_rows, bool symmetric) -> ()");
  m.def("fused_rows(" PROBLEM "Tensor(a!) slots, Tensor(b!) partial, " CANDIDATES
        "int split_columns, int float32) -> ()");
  m.def(
      "finish_weighted(Tensor slots, Tensor partial, Tensor(a!) rows, Tensor(b!) row_max, "
      "Tensor(c!) mean, Tensor like) -> ()");
  m.def(
      "terms(Tensor g_rows, Tensor g_cols, Tensor rows, Tensor cols, Tensor pos, "
      "Tensor(a!) row_terms, Tensor(b!) col_terms, Tensor(c!) pull, Tensor(d!) unit, "
      "int positive) -> ()");
  m.def("pair_weight(" PROBLEM
        "Tensor row_terms, Tensor col_terms, Tensor unit, Tensor(a!) panel, " CANDIDATES
        "bool mirror, int float32) -> ()");
  m.def(
      "finish_backward(Tensor gradient, Tensor x, Tensor y, Tensor given, Tensor inv, "
      "Tensor pull, Tensor scale, Tensor unit, Tensor(a!) dx, Tensor(b!) radial, int positive, "
      "bool near, bool far, bool halved) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(NAMESPACE, DEVICE, m) {
  m.impl("prepare", TORCH_BOX(&prepare));
  m.impl("pair_reduce", TORCH_BOX(&pair_reduce));
  m.impl("finish_forward", TORCH_BOX(&finish_forward));
  m.impl("fused_rows", TORCH_BOX(&fused_rows));
  m.impl("finish_weighted", TORCH_BOX(&finish_weighted));
  m.impl("terms", TORCH_BOX(&terms));
  m.impl("pair_weight", TORCH_BOX(&pair_weight));
  m.impl("finish_backward", TORCH_BOX(&finish_backward));
}
