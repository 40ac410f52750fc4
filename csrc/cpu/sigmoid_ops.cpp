// The torch side of the sigmoid family: op schemas, checks, outputs.
#include <torch/library.h>

#include "bindings.h"

namespace fused_contrastive {
namespace {

Tensor row_biases(const optional<Tensor>& row_bias, const Tensor& a, int64_t sign,
                  at::ScalarType type) {
  TORCH_CHECK(sign == 1 || sign == -1, "sign must be 1 or -1, got ", sign);
  if (!row_bias) return Tensor();
  TORCH_CHECK(row_bias->sizes() == a.sizes().slice(0, 2), "row_bias must be [G, M], got ",
              row_bias->sizes());
  return row_bias->to(type).contiguous();
}

Outputs sigmoid_forward(const Tensor& a_, const optional<Tensor>& b_, const Tensor& scale,
                        const optional<Tensor>& row_bias_, const optional<Tensor>& key_a,
                        const optional<Tensor>& key_b, const std::string& kind_name, int64_t offset,
                        int64_t stride, int64_t positive, int64_t sign, bool normalize,
                        bool extrema, at::ScalarType dtype) {
  const Kind kind = kind_of(kind_name);
  check(a_, b_, false, false, kind, offset, stride, key_a, key_b);
  const Tensor a = rows_contiguous(a_), b = b_ ? rows_contiguous(*b_) : a;
  const at::ScalarType acc = accumulation(dtype);
  const int64_t G = a.size(0), M = a.size(1), N = b.size(1), D = a.size(2);
  const Tensor row_bias = row_biases(row_bias_, a, sign, acc);
  const auto make = [&](bool present, at::IntArrayRef sizes, at::ScalarType type) {
    return output(a, present, sizes, type);
  };
  const Tensor rows = make(true, {G, M}, acc), pos = make(positive >= 0, {G, M}, acc);
  const Tensor row_max = make(extrema, {G, M}, acc);
  const Tensor a_hat = make(normalize || a.scalar_type() != dtype, {G, M, D}, dtype);
  const Tensor b_hat = make(b_ && (normalize || b.scalar_type() != dtype), {G, N, D}, dtype);
  const Tensor a_inv = make(normalize, {G, M}, acc), b_inv = make(normalize && b_, {G, N}, acc);

  SigmoidForward f{};
  const Keys keys(key_a, key_b, !b_);
  describe(f, a, scale, Tensor(), keys, kind, offset, stride, positive, dtype);
  f.one_set = !b_;
  f.a = set_of(a, a_hat, a_inv, Tensor());
  f.b = b_ ? set_of(b, b_hat, b_inv, Tensor()) : f.a;
  f.sign = int(sign);
  f.row_bias = data(row_bias);
  f.normalize = normalize;
  f.rows = data(rows), f.pos = data(pos), f.row_max = data(row_max);
  TorchRuntime runtime;
  kernels_for(f.matrix).sigmoid_forward(f, &runtime);
  return {rows, pos, row_max, a_hat, b_hat, a_inv, b_inv};
}

Outputs sigmoid_backward(const Tensor& g_, const Tensor& a_, const optional<Tensor>& b_,
                         const Tensor& scale, const optional<Tensor>& row_bias_,
                         const optional<Tensor>& key_a, const optional<Tensor>& key_b,
                         const Tensor& pos_, const Tensor& a_hat, const Tensor& b_hat,
                         const Tensor& a_inv, const Tensor& b_inv, const std::string& kind_name,
                         int64_t offset, int64_t stride, int64_t positive, int64_t sign,
                         bool normalize, at::ScalarType dtype, bool need_a, bool need_b,
                         bool need_scale, bool need_bias) {
  const Kind kind = kind_of(kind_name);
  check(a_, b_, false, false, kind, offset, stride, key_a, key_b);
  const Tensor a = rows_contiguous(a_), b = b_ ? rows_contiguous(*b_) : a;
  const at::ScalarType acc = accumulation(dtype);
  const int64_t G = a.size(0), M = a.size(1), N = b.size(1), D = a.size(2);
  const Tensor row_bias = row_biases(row_bias_, a, sign, acc);
  const auto make = [&](bool present, at::IntArrayRef sizes, at::ScalarType type) {
    return output(a, present, sizes, type);
  };
  need_b = need_b && b_;
  const Tensor da = make(need_a, {G, M, D}, a.scalar_type()),
               db = make(need_b, {G, N, D}, b.scalar_type());
  const Tensor dscale = make(need_scale, {}, acc), dbias = make(need_bias, {G, M}, acc);
  if (!need_a && !need_b && !need_scale && !need_bias) return {da, db, dscale, dbias};

  SigmoidBackward f{};
  const Keys keys(key_a, key_b, !b_);
  describe(f, a, scale, Tensor(), keys, kind, offset, stride, positive, dtype);
  f.one_set = !b_;
  f.a = set_of(a, a_hat, a_inv, da);
  f.b = b_ ? set_of(b, b_hat, b_inv, db) : f.a;
  f.sign = int(sign);
  f.row_bias = data(row_bias);
  const Tensor g = g_.to(acc).contiguous(), pos = pos_.contiguous();
  std::vector<double> sums(size_t(G), 0.0);
  f.g = data(g), f.pos = data(pos);
  f.need_scale = need_scale;
  f.dscale = sums.data();
  f.dbias = data(dbias);
  TorchRuntime runtime;
  kernels_for(f.matrix).sigmoid_backward(f, &runtime);
  if (need_scale) {
    double total = 0;
    for (double x : sums) total += x;
    dscale.fill_(total);
  }
  return {da, db, dscale, dbias};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fused_contrastive_cpu, m) {
  m.def(
      "sigmoid_forward(Tensor a, Tensor? b, Tensor scale, Tensor? row_bias, Tensor? key_a, "
      "Tensor? key_b, str kind, int offset, int stride, int positive, int sign, bool normalize, "
      "bool extrema, ScalarType dtype) -> Tensor[]");
  m.def(
      "sigmoid_backward(Tensor g, Tensor a, Tensor? b, Tensor scale, Tensor? row_bias, "
      "Tensor? key_a, Tensor? key_b, Tensor pos, Tensor a_hat, Tensor b_hat, Tensor a_inv, "
      "Tensor b_inv, str kind, int offset, int stride, int positive, int sign, bool normalize, "
      "ScalarType dtype, bool need_a, bool need_b, bool need_scale, bool need_bias) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fused_contrastive_cpu, CPU, m) {
  m.impl("sigmoid_forward", &sigmoid_forward);
  m.impl("sigmoid_backward", &sigmoid_backward);
}

}  // namespace fused_contrastive
