// Torch operators over the kernels of the force family. Each one launches one kernel. As with
// similarity_ops.cpp the Python side, fused_contrastive/backends/cuda/force.py, allocates and
// checks.
#include "force.h"
#include "operators.h"

namespace fused_contrastive {
namespace {

const ForceKernels& kernels(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return F16_FORCE;
    case ScalarType::BFloat16:
      return BF16_FORCE;
    case ScalarType::Float:
      return F32_FORCE;
    case ScalarType::Double:
      return F64_FORCE;
    default:
      STD_TORCH_CHECK(false,
                      "the CUDA kernels take float16, bfloat16, float32 and float64 tensors");
  }
}

// The arguments of a launch over all pairs of x: the rows `rows` against all columns, in one part.
ForceParams problem(const Tensor& x, int64_t rows, int64_t negatives) {
  ForceParams p{};
  p.x = pointer(x);
  p.G = size(x, 0), p.P = size(x, 1), p.D = size(x, 2);
  p.rows = static_cast<int>(rows), p.negatives = static_cast<int>(negatives);
  p.splits = 1, p.count = p.rows;
  return p;
}

void add_temperatures(ForceParams& p, const Tensor& inverse) {
  p.inverse = pointer(inverse), p.K = static_cast<int>(inverse.size(0));
}

void add_affinity(ForceParams& p, double self_logit, double floor, double denominator,
                  double clip) {
  p.self_logit = self_logit, p.floor = floor, p.denominator = denominator, p.clip = clip;
}

void force_group(Tensor x, Tensor inverse, OptionalTensor scale, OptionalTensor weight,
                 Tensor force, Tensor log_norm, Tensor wide, Tensor scales, Tensor lse_rows,
                 Tensor lse_cols, Tensor shift, Tensor sums, int64_t rows, int64_t negatives,
                 bool all_rows, bool mask, double self_logit, double floor, double denominator,
                 double clip, bool rms, bool separate) {
  const Queue queue(x);
  ForceParams p = problem(x, rows, negatives);
  add_temperatures(p, inverse);
  add_affinity(p, self_logit, floor, denominator, clip);
  p.given_scale = pointer(scale), p.weight = pointer(weight), p.scale = pointer(scales),
  p.out = pointer(force);
  p.lse_rows = pointer(lse_rows), p.lse_cols = pointer(lse_cols), p.log_norm = pointer(log_norm);
  p.wide = pointer(wide), p.shift = pointer(shift), p.sums = pointer(sums);
  p.all_rows = all_rows, p.mask = mask, p.rms = rms, p.separate = separate;
  kernels(x.scalar_type()).group(p, queue.stream());
}

void force_group_gradient(Tensor g, Tensor x, Tensor dx) {
  const Queue queue(x);
  ForceParams p = problem(x, x.size(1), x.size(1));
  p.upstream = pointer(g), p.out = pointer(dx);
  kernels(x.scalar_type()).group_gradient(p, queue.stream());
}

void force_distances(Tensor x, OptionalTensor weight, Tensor out, double clip) {
  const Queue queue(x);
  ForceParams p = problem(x, out.size(2), x.size(1));
  p.weight = pointer(weight), p.out = pointer(out), p.clip = clip,
  p.splits = static_cast<int>(out.size(0));
  kernels(x.scalar_type()).distances(p, queue.stream());
}

void force_log_sums(Tensor x, Tensor inverse, Tensor scale, Tensor lse, Tensor maxima, Tensor sums,
                    int64_t rows, int64_t columns, bool mask, double clip, int64_t splits) {
  const Queue queue(x);
  ForceParams p = problem(x, rows, columns);
  add_temperatures(p, inverse);
  p.scale = pointer(scale), p.lse_rows = pointer(lse), p.shift = pointer(maxima),
  p.sums = pointer(sums);
  p.mask = mask, p.clip = clip, p.splits = static_cast<int>(splits);
  kernels(x.scalar_type()).log_sums(p, queue.stream());
}

void force_affinities(Tensor x, Tensor inverse, Tensor scale, OptionalTensor weight,
                      Tensor lse_rows, Tensor lse_cols, Tensor shift, Tensor sums, Tensor squares,
                      Tensor apart, int64_t rows, int64_t negatives, double self_logit,
                      double floor, double denominator, double clip, int64_t splits) {
  const Queue queue(x);
  ForceParams p = problem(x, rows, negatives);
  add_temperatures(p, inverse);
  add_affinity(p, self_logit, floor, denominator, clip);
  p.scale = pointer(scale), p.weight = pointer(weight);
  p.lse_rows = pointer(lse_rows), p.lse_cols = pointer(lse_cols.numel() == 0 ? lse_rows : lse_cols);
  p.shift = pointer(shift), p.sums = pointer(sums), p.squares = pointer(squares),
  p.apart = pointer(apart);
  p.rms = squares.numel() > 0, p.separate = apart.numel() > 0;
  p.all_rows = lse_cols.numel() == 0, p.splits = static_cast<int>(splits);
  kernels(x.scalar_type()).affinities(p, queue.stream());
}

void force_weights(Tensor x, Tensor inverse, Tensor scale, OptionalTensor weight, Tensor lse_rows,
                   Tensor lse_cols, Tensor shift, Tensor sums, Tensor wide, Tensor panel,
                   int64_t rows, int64_t negatives, int64_t first, double self_logit, double floor,
                   double denominator, double clip, bool separate, int64_t splits) {
  const Queue queue(x);
  ForceParams p = problem(x, rows, negatives);
  add_temperatures(p, inverse);
  add_affinity(p, self_logit, floor, denominator, clip);
  p.scale = pointer(scale), p.weight = pointer(weight), p.wide = pointer(wide),
  p.out = pointer(panel);
  p.lse_rows = pointer(lse_rows), p.lse_cols = pointer(lse_cols.numel() == 0 ? lse_rows : lse_cols);
  p.shift = pointer(shift), p.sums = pointer(sums);
  p.all_rows = lse_cols.numel() == 0, p.separate = separate;
  p.splits = static_cast<int>(splits);
  p.first = static_cast<int>(first), p.count = static_cast<int>(panel.size(2));
  kernels(x.scalar_type()).weights(p, queue.stream());
}

void force_inverses(Tensor g, Tensor x, Tensor panel, int64_t first, int64_t splits) {
  const Queue queue(x);
  ForceParams p = problem(x, x.size(1), x.size(1));
  p.upstream = pointer(g), p.out = pointer(panel), p.splits = static_cast<int>(splits);
  p.first = static_cast<int>(first), p.count = static_cast<int>(panel.size(1));
  kernels(x.scalar_type()).inverses(p, queue.stream());
}

void force_merge(Tensor maxima, Tensor sums, Tensor lse, Tensor shift, Tensor total,
                 int64_t splits) {
  const Queue queue(maxima);
  ForceMergeParams p{};
  p.maxima = pointer(maxima), p.sums = pointer(sums), p.splits = static_cast<int>(splits);
  p.lse = pointer(lse), p.shift = pointer(shift), p.total = pointer(total);
  p.count = maxima.numel() / splits;
  kernels(maxima.scalar_type()).merge(p, queue.stream());
}

void force_norms(Tensor squares, Tensor shift, Tensor apart, Tensor scale, Tensor log_norm,
                 Tensor wide, int64_t points, int64_t splits) {
  const Queue queue(log_norm);
  ForceParams p{};
  p.scale = pointer(scale), p.wide = pointer(wide);
  p.squares = pointer(squares), p.shift = pointer(shift), p.apart = pointer(apart),
  p.log_norm = pointer(log_norm);
  p.K = static_cast<int>(shift.size(1)), p.G = size(shift, 2),
  p.rows = static_cast<int>(shift.size(3));
  p.P = static_cast<int>(points), p.splits = static_cast<int>(splits), p.rms = squares.numel() > 0;
  kernels(log_norm.scalar_type()).norms(p, queue.stream());
}

}  // namespace
}  // namespace fused_contrastive

using namespace fused_contrastive;

#define AFFINITY "float self_logit, float floor, float denominator, float clip, "
#define FIELD \
  "Tensor x, Tensor inverse, Tensor scale, Tensor? weight, Tensor lse_rows, Tensor lse_cols, "

STABLE_TORCH_LIBRARY_FRAGMENT(NAMESPACE, m) {
  m.def(
      "force_group(Tensor x, Tensor inverse, Tensor? scale, Tensor? weight, Tensor(a!) force, "
      "Tensor(b!) log_norm, Tensor(c!) wide, Tensor(d!) scales, Tensor(e!) lse_rows, Tensor(f!) "
      "lse_cols, Tensor(g!) shift, Tensor(h!) sums, int rows, int negatives, bool all_rows, bool "
      "mask, " AFFINITY "bool rms, bool separate) -> ()");
  m.def("force_group_gradient(Tensor g, Tensor x, Tensor(a!) dx) -> ()");
  m.def("force_distances(Tensor x, Tensor? weight, Tensor(a!) out, float clip) -> ()");
  m.def(
      "force_log_sums(Tensor x, Tensor inverse, Tensor scale, Tensor(a!) lse, Tensor(b!) maxima, "
      "Tensor(c!) sums, int rows, int columns, bool mask, float clip, int splits) -> ()");
  m.def("force_affinities(" FIELD
        "Tensor(a!) shift, Tensor(b!) sums, Tensor(c!) squares, Tensor(d!) apart, int rows, int "
        "negatives, " AFFINITY "int splits) -> ()");
  m.def("force_weights(" FIELD
        "Tensor shift, Tensor sums, Tensor wide, Tensor(a!) panel, int rows, int negatives, int "
        "first, " AFFINITY "bool separate, int splits) -> ()");
  m.def("force_inverses(Tensor g, Tensor x, Tensor(a!) panel, int first, int splits) -> ()");
  m.def(
      "force_merge(Tensor maxima, Tensor sums, Tensor(a!) lse, Tensor(b!) shift, "
      "Tensor(c!) total, int splits) -> ()");
  m.def(
      "force_norms(Tensor squares, Tensor shift, Tensor apart, Tensor scale, "
      "Tensor(a!) log_norm, Tensor(b!) wide, int points, int splits) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(NAMESPACE, DEVICE, m) {
  m.impl("force_group", TORCH_BOX(&force_group));
  m.impl("force_group_gradient", TORCH_BOX(&force_group_gradient));
  m.impl("force_distances", TORCH_BOX(&force_distances));
  m.impl("force_log_sums", TORCH_BOX(&force_log_sums));
  m.impl("force_affinities", TORCH_BOX(&force_affinities));
  m.impl("force_weights", TORCH_BOX(&force_weights));
  m.impl("force_inverses", TORCH_BOX(&force_inverses));
  m.impl("force_merge", TORCH_BOX(&force_merge));
  m.impl("force_norms", TORCH_BOX(&force_norms));
}
