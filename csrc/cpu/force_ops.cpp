// The torch side of the force family: op schemas, checks, outputs.
#include <torch/library.h>

#include <optional>

#include "torch_runtime.h"

namespace fused_contrastive {
namespace {

using std::optional;

template <class F>
void describe(F& f, const Tensor& x) {
  f.x = x.const_data_ptr();
  f.type = type_of(x.scalar_type());
  f.group_stride = x.stride(0), f.row_stride = x.stride(1);
  f.G = x.size(0), f.P = x.size(1), f.D = x.size(2);
}

void check(const Tensor& x, int64_t rows, const optional<Tensor>& weight) {
  TORCH_CHECK(x.dim() == 3 && x.numel() > 0, "x must be [G, P, D] and not empty, got ", x.sizes());
  TORCH_CHECK(rows >= 1 && rows <= x.size(1), "rows must be 1 to ", x.size(1), ", got ", rows);
  TORCH_CHECK(!weight || weight->sizes() == x.sizes().slice(0, 2), "weight must be [G, P], got ",
              weight->sizes());
}

std::vector<Tensor> force(const Tensor& x_, const Tensor& inverse_temperatures_,
                          const optional<Tensor>& scale_, const optional<Tensor>& weight_,
                          int64_t rows, int64_t negatives, bool all_rows, bool mask,
                          double self_logit, double floor, double denominator, double clip,
                          bool rms, bool separate) {
  check(x_, rows, weight_);
  const Tensor x = rows_contiguous(x_);
  const at::ScalarType acc = accumulation(x.scalar_type());
  const int64_t G = x.size(0), P = x.size(1), D = x.size(2), K = inverse_temperatures_.numel();
  TORCH_CHECK(rows <= negatives && negatives <= P, "negatives must be ", rows, " to ", P, ", got ",
              negatives);
  TORCH_CHECK(!rms || (all_rows && negatives == rows && !weight_),
              "rms needs all rows and no weights");
  const auto given = [&](const optional<Tensor>& t) {
    return t ? t->to(acc).contiguous() : Tensor();
  };
  const Tensor inverse_temperatures = given(inverse_temperatures_), scale = given(scale_),
               weight = given(weight_);
  const auto make = [&](at::IntArrayRef sizes) {
    return with_large_pages(at::empty(sizes, x.options().dtype(acc)));
  };
  const Tensor out = make({separate ? K : 1, G, rows, D}), log_norm = make({K, G}),
               used = make({G});
  const Tensor lse_rows = make({K, G, all_rows ? P : rows}),
               lse_cols = all_rows ? make({0}) : make({K, G, P});
  const Tensor shift = make({2, K, G, rows}), sums = make({2, K, G, rows});

  Force f{};
  describe(f, x);
  f.K = K, f.rows = rows, f.negatives = negatives;
  f.all_rows = all_rows, f.mask = mask, f.rms = rms, f.separate = separate;
  f.self_logit = self_logit, f.floor = floor, f.denominator = denominator, f.clip = clip;
  f.inverse_temperatures = data(inverse_temperatures), f.given_scale = data(scale),
  f.weight = data(weight);
  f.force = data(out), f.log_norm = data(log_norm), f.scale = data(used);
  f.lse_rows = data(lse_rows), f.lse_cols = data(lse_cols), f.shift = data(shift),
  f.sums = data(sums);
  TorchRuntime runtime;
  force_kernels_for(type_of(acc)).force(f, &runtime);
  return {out, log_norm, used, lse_rows, lse_cols, shift, sums};
}

Tensor distances(const Tensor& x_, const optional<Tensor>& weight_,
                 const optional<Tensor>& upstream_, int64_t rows, double clip) {
  check(x_, rows, weight_);
  const Tensor x = rows_contiguous(x_);
  const at::ScalarType acc = accumulation(x.scalar_type());
  const auto given = [&](const optional<Tensor>& t) {
    return t ? t->to(acc).contiguous() : Tensor();
  };
  const Tensor weight = given(weight_), upstream = given(upstream_);
  const Tensor out = upstream_ ? at::empty(x.sizes(), x.options())
                               : at::empty({x.size(0), rows}, x.options().dtype(acc));
  Distances f{};
  describe(f, x);
  f.rows = rows, f.clip = clip;
  f.weight = data(weight), f.upstream = data(upstream);
  (upstream_ ? f.gradient : f.sums) = data(out);
  TorchRuntime runtime;
  force_kernels_for(type_of(acc)).distances(f, &runtime);
  return out;
}

Tensor distance_sums(const Tensor& x, const optional<Tensor>& weight, int64_t rows, double clip) {
  return distances(x, weight, {}, rows, clip);
}
Tensor distance_gradient(const Tensor& g, const Tensor& x) {
  return distances(x, {}, g, x.size(1), 0);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fused_contrastive_cpu, m) {
  m.def(
      "force(Tensor x, Tensor inverse_temperatures, Tensor? scale, Tensor? weight, int rows, "
      "int negatives, bool all_rows, bool mask, float self_logit, float floor, "
      "float denominator, float clip, bool rms, bool separate) -> Tensor[]");
  m.def("distance_sums(Tensor x, Tensor? weight, int rows, float clip) -> Tensor");
  m.def("distance_gradient(Tensor g, Tensor x) -> Tensor");
}

TORCH_LIBRARY_IMPL(fused_contrastive_cpu, CPU, m) {
  m.impl("force", &force);
  m.impl("distance_sums", &distance_sums);
  m.impl("distance_gradient", &distance_gradient);
}

}  // namespace fused_contrastive
