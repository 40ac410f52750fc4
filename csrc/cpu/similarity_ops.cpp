// The torch side of the similarity family: op schemas, checks, outputs.
#include <torch/library.h>

#include "bindings.h"

namespace fused_contrastive {
namespace {

Outputs forward(const Tensor& a_, const optional<Tensor>& b_, const Tensor& scale,
                const optional<Tensor>& bias_, const optional<Tensor>& key_a,
                const optional<Tensor>& key_b, const std::string& kind_name, int64_t offset,
                int64_t stride, int64_t positive, bool normalize, bool columns, bool extrema,
                bool weighted, at::ScalarType dtype) {
  const Kind kind = kind_of(kind_name);
  check(a_, b_, bias_.has_value(), columns, kind, offset, stride, key_a, key_b);
  const Tensor a = rows_contiguous(a_), b = b_ ? rows_contiguous(*b_) : a;
  const at::ScalarType acc = accumulation(dtype);
  const int64_t G = a.size(0), M = a.size(1), N = b.size(1), D = a.size(2);
  const auto make = [&](bool present, at::IntArrayRef sizes, at::ScalarType type) {
    return output(a, present, sizes, type);
  };
  const bool paired = positive >= 0;
  const Tensor rows = make(true, {2, G, M}, acc), cols = make(columns, {2, G, N}, acc);
  const Tensor pos = make(paired, {G, M}, acc), loss = make(paired, {G, M}, acc);
  const Tensor row_max = make(extrema, {G, M}, acc),
               col_max = make(extrema && columns, {G, N}, acc);
  const Tensor a_hat = make(normalize || a.scalar_type() != dtype, {G, M, D}, dtype);
  const Tensor b_hat = make(b_ && (normalize || b.scalar_type() != dtype), {G, N, D}, dtype);
  const Tensor a_inv = make(normalize, {G, M}, acc), b_inv = make(normalize && b_, {G, N}, acc);
  const Tensor mean = make(weighted, {G, M, D}, acc);
  const Tensor bias = bias_ ? bias_->to(acc).contiguous() : Tensor();

  SimilarityForward f{};
  const Keys keys(key_a, key_b, !b_);
  describe(f, a, scale, bias, keys, kind, offset, stride, positive, dtype);
  f.one_set = !b_;
  f.a = set_of(a, a_hat, a_inv, Tensor());
  f.b = b_ ? set_of(b, b_hat, b_inv, Tensor()) : f.a;
  f.normalize = normalize;
  f.rows = data(rows), f.cols = data(cols), f.pos = data(pos), f.loss = data(loss);
  f.row_max = data(row_max), f.col_max = data(col_max), f.mean = data(mean);
  TorchRuntime runtime;
  kernels_for(f.matrix).forward(f, &runtime);
  return {rows, cols, pos, loss, row_max, col_max, a_hat, b_hat, a_inv, b_inv, mean};
}

Outputs backward(const Tensor& g_rows, const Tensor& g_cols, const Tensor& a_,
                 const optional<Tensor>& b_, const Tensor& scale, const optional<Tensor>& bias_,
                 const optional<Tensor>& key_a, const optional<Tensor>& key_b, const Tensor& rows,
                 const Tensor& cols, const Tensor& pos, const Tensor& a_hat, const Tensor& b_hat,
                 const Tensor& a_inv, const Tensor& b_inv, const Tensor& mean,
                 const std::string& kind_name, int64_t offset, int64_t stride, int64_t positive,
                 bool normalize, at::ScalarType dtype, bool need_a, bool need_b, bool need_scale,
                 bool need_bias) {
  const Kind kind = kind_of(kind_name);
  check(a_, b_, bias_.has_value(), cols.numel() > 0, kind, offset, stride, key_a, key_b);
  const Tensor a = rows_contiguous(a_), b = b_ ? rows_contiguous(*b_) : a;
  const at::ScalarType acc = accumulation(dtype);
  const int64_t G = a.size(0), M = a.size(1), N = b.size(1), D = a.size(2);
  const auto make = [&](bool present, at::IntArrayRef sizes, at::ScalarType type) {
    return output(a, present, sizes, type);
  };
  need_b = need_b && b_;
  const Tensor bias = bias_ ? bias_->to(acc).contiguous() : Tensor();
  need_bias = need_bias && bias.defined();
  const Tensor da = make(need_a, {G, M, D}, a.scalar_type());
  const Tensor db = make(need_b, {G, N, D}, b.scalar_type());
  const Tensor dbias = make(need_bias, {G, N}, acc);
  std::vector<double> dscale(size_t(G), 0.0);
  if (need_a || need_b || need_scale || need_bias) {
    SimilarityBackward f{};
    const Keys keys(key_a, key_b, !b_);
    describe(f, a, scale, bias, keys, kind, offset, stride, positive, dtype);
    f.one_set = !b_;
    f.a = set_of(a, a_hat, a_inv, da);
    f.b = b_ ? set_of(b, b_hat, b_inv, db) : f.a;
    const auto vector = [&](const Tensor& x) { return x.numel() ? x.to(acc).contiguous() : x; };
    const Tensor saved[] = {vector(g_rows), vector(g_cols), vector(rows),
                            vector(cols),   vector(pos),    vector(mean)};
    f.g_rows = data(saved[0]), f.g_cols = data(saved[1]), f.rows = data(saved[2]),
    f.cols = data(saved[3]);
    f.pos = data(saved[4]), f.mean = data(saved[5]);
    f.need_scale = need_scale;
    f.dscale = dscale.data();
    f.dbias = data(dbias);
    TorchRuntime runtime;
    kernels_for(f.matrix).backward(f, &runtime);
  }
  Tensor total = make(need_scale, {}, acc);
  if (need_scale) {
    double sum = 0;
    for (double x : dscale) sum += x;
    total.fill_(sum);
  }
  return {da, db, total, dbias};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fused_contrastive_cpu, m) {
  m.def(
      "forward(Tensor a, Tensor? b, Tensor scale, Tensor? bias, Tensor? key_a, Tensor? key_b, "
      "str kind, int offset, int stride, int positive, bool normalize, bool columns, "
      "bool extrema, bool weighted, ScalarType dtype) -> Tensor[]");
  m.def(
      "backward(Tensor g_rows, Tensor g_cols, Tensor a, Tensor? b, Tensor scale, Tensor? bias, "
      "Tensor? key_a, Tensor? key_b, Tensor rows, Tensor cols, Tensor pos, Tensor a_hat, "
      "Tensor b_hat, Tensor a_inv, Tensor b_inv, Tensor mean, str kind, int offset, int stride, "
      "int positive, bool normalize, ScalarType dtype, bool need_a, bool need_b, "
      "bool need_scale, bool need_bias) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fused_contrastive_cpu, CPU, m) {
  m.impl("forward", &forward);
  m.impl("backward", &backward);
}

}  // namespace fused_contrastive
