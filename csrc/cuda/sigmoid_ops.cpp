// Torch operators over the kernels of the sigmoid family. Each one launches one kernel. As with
// similarity_ops.cpp the Python side, fused_contrastive/backends/cuda/sigmoid.py, allocates and
// checks.
#include "pair_operators.h"
#include "sigmoid.h"

namespace fused_contrastive {
namespace {

const SigmoidKernels& kernels(const Tensor& x, const Tensor& y, int64_t float32) {
  if (by_tensor_copies(x, y)) return type(x) == Type::bf16 ? BF16_SM90_SIGMOID : F16_SM90_SIGMOID;
  switch (type(x)) {
    case Type::bf16:
      return BF16_SIGMOID;
    case Type::f16:
      return F16_SIGMOID;
    case Type::f64:
      return F64_SIGMOID;
    default:
      break;
  }
  switch (static_cast<Float32>(float32)) {
    case Float32::tf32:
      return TF32_SIGMOID;
    case Float32::tf32x3:
      return TF32X3_SIGMOID;
    default:
      return FMA_SIGMOID;
  }
}

void sigmoid_reduce(Tensor x, Tensor y, OptionalTensor row_bias, OptionalTensor key_a,
                    OptionalTensor key_b, Tensor scale, Tensor slots, int64_t kind, int64_t offset,
                    int64_t stride, int64_t super_rows, int64_t sign, bool extrema,
                    int64_t float32) {
  const Queue queue(x);
  SigmoidReduceParams r{};
  r.p = problem(x, y, OptionalTensor(), key_a, key_b, scale, kind, offset, stride);
  r.row_bias = pointer(row_bias), r.slots = pointer(slots);
  r.super_rows = static_cast<int>(super_rows), r.sign = static_cast<int>(sign), r.extrema = extrema;
  kernels(x, y, float32).reduce(r, queue.stream());
}

void sigmoid_finish(Tensor slots, Tensor x, Tensor y, OptionalTensor row_bias, Tensor scale,
                    Tensor rows, Tensor pos, Tensor row_max, int64_t positive, int64_t supers,
                    int64_t sign) {
  const Queue queue(x);
  SigmoidFinishParams p{};
  p.slots = pointer(slots), p.x = pointer(x), p.y = pointer(y);
  p.row_bias = pointer(row_bias), p.scale = pointer(scale);
  p.rows = pointer(rows), p.pos = pointer(pos), p.row_max = pointer(row_max);
  p.G = size(x, 0), p.M = size(x, 1), p.N = size(y, 1), p.D = size(x, 2);
  p.positive = static_cast<int>(positive), p.supers = static_cast<int>(supers),
  p.sign = static_cast<int>(sign);
  launch_sigmoid_finish(p, type(x), queue.stream());
}

void sigmoid_terms(Tensor g, OptionalTensor row_bias, Tensor pos, Tensor row_terms, Tensor pull,
                   Tensor unit, int64_t sign) {
  const Queue queue(row_terms);
  SigmoidTermsParams p{};
  p.g = pointer(g), p.row_bias = pointer(row_bias), p.pos = pointer(pos);
  p.row_terms = pointer(row_terms), p.pull = pointer(pull),
  p.unit = static_cast<float*>(pointer(unit));
  p.G = size(row_terms, 0), p.M = size(row_terms, 1), p.sign = static_cast<int>(sign);
  p.same_g = expanded(g), p.same_bias = row_bias.has_value() && expanded(*row_bias);
  launch_sigmoid_terms(p, type(row_terms), queue.stream());
}

void sigmoid_weight(Tensor x, Tensor y, OptionalTensor key_a, OptionalTensor key_b, Tensor scale,
                    Tensor row_terms, Tensor unit, Tensor sums, Tensor panel, int64_t kind,
                    int64_t offset, int64_t stride, int64_t sign, int64_t float32) {
  const Queue queue(x);
  SigmoidWeightParams w{};
  w.p = problem(x, y, OptionalTensor(), key_a, key_b, scale, kind, offset, stride);
  w.row_terms = pointer(row_terms), w.unit = pointer(unit), w.panel = pointer(panel),
  w.sums = pointer(sums);
  w.sign = static_cast<int>(sign);
  kernels(x, y, float32).weight(w, queue.stream());
}

}  // namespace
}  // namespace fused_contrastive

using namespace fused_contrastive;

STABLE_TORCH_LIBRARY_FRAGMENT(NAMESPACE, m) {
  m.def(
      "sigmoid_reduce(Tensor x, Tensor y, Tensor? row_bias, Tensor? key_a, Tensor? key_b, "
      "Tensor scale, Tensor(a!) slots, int kind, int offset, int stride, int super_rows, "
      "int sign, bool extrema, int float32) -> ()");
  m.def(
      "sigmoid_finish(Tensor slots, Tensor x, Tensor y, Tensor? row_bias, Tensor scale, "
      "Tensor(a!) rows, Tensor(b!) pos, Tensor(c!) row_max, int positive, int supers, "
      "int sign) -> ()");
  m.def(
      "sigmoid_terms(Tensor g, Tensor? row_bias, Tensor pos, Tensor(a!) row_terms, "
      "Tensor(b!) pull, Tensor(c!) unit, int sign) -> ()");
  m.def(
      "sigmoid_weight(Tensor x, Tensor y, Tensor? key_a, Tensor? key_b, Tensor scale, "
      "Tensor row_terms, Tensor unit, Tensor(a!) sums, Tensor(b!) panel, int kind, int offset, "
      "int stride, int sign, int float32) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(NAMESPACE, DEVICE, m) {
  m.impl("sigmoid_reduce", TORCH_BOX(&sigmoid_reduce));
  m.impl("sigmoid_finish", TORCH_BOX(&sigmoid_finish));
  m.impl("sigmoid_terms", TORCH_BOX(&sigmoid_terms));
  m.impl("sigmoid_weight", TORCH_BOX(&sigmoid_weight));
}
