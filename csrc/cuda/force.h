// Host entry points of the force family's kernels: plain pointers and sizes, no torch. Absent
// tensors are null. fused_contrastive/ops/force.py defines every quantity.
#pragma once

#include "platform.cuh"

namespace fused_contrastive {

// Arguments of the kernels of the force family. One group is x [P, D]; sizes and options are those
// of ops/force.py. Everything but x and dx is in the accumulation type. Some kernels write the
// arrays from `scale` to `sums`, `squares` and `apart`, and others read them.
struct ForceParams {
  const void *x, *inverse, *given_scale, *weight, *upstream;
  void *scale, *lse_rows, *lse_cols, *shift, *sums, *squares, *apart, *log_norm, *wide;
  void* out;
  double self_logit, floor, denominator, clip;
  int G, P, D, K;
  int rows, negatives;
  // The columns are cut into `splits` parts. Each part has a block and partial results of its own.
  int splits;
  // The rows of a panel of weights.
  int first, count;
  bool all_rows, mask, rms, separate;
};

// Partial results of a sum in `splits` parts, [splits, count] each: maxima, and sums of exp(x -
// maximum). The result is `lse`, or else `shift` and `total`.
struct ForceMergeParams {
  const void *maxima, *sums;
  void *lse, *shift, *total;
  int64_t count;
  int splits;
};

// The kernels for one element type of x, as function pointers. force_group.cuh has those for whole
// groups in shared memory, force_rows.cuh those for any size.
struct ForceKernels {
  void (*group)(const ForceParams&, Stream);
  void (*group_gradient)(const ForceParams&, Stream);
  void (*distances)(const ForceParams&, Stream);
  void (*log_sums)(const ForceParams&, Stream);
  void (*affinities)(const ForceParams&, Stream);
  void (*weights)(const ForceParams&, Stream);
  void (*inverses)(const ForceParams&, Stream);
  void (*merge)(const ForceMergeParams&, Stream);
  void (*norms)(const ForceParams&, Stream);
};
extern const ForceKernels BF16_FORCE, F16_FORCE, F32_FORCE, F64_FORCE;

}  // namespace fused_contrastive
