// Host entry points of the kernels of the force family: plain pointers and sizes, no torch. Absent
// tensors are null. What is computed: fused_contrastive/force_ops.py.
#pragma once

#include "platform.cuh"

namespace fused_contrastive {

// One group is x [P, D] with the sizes and options of force_ops.py. Everything but x and dx is in
// the accumulation type; scale .. sums, squares and apart are written by some kernels and read by
// others.
struct ForceParams {
  const void *x, *inverse, *given_scale, *weight, *upstream;
  void *scale, *lse_rows, *lse_cols, *shift, *sums, *squares, *apart, *log_norm, *wide;
  void* out;
  double self_logit, floor, denominator, clip;
  int G, P, D, K;
  int rows, negatives;
  int splits;        // parts of the columns, a block each: partial results of each
  int first, count;  // rows of a panel of weights
  bool all_rows, mask, rms, separate;
};

// Partial results of `splits` parts of a sum, [splits, count] each: maxima, and sums of exp(. -
// maximum).
struct ForceMergeParams {
  const void *maxima, *sums;
  void *lse, *shift, *total;  // lse, or shift and total
  int64_t count;
  int splits;
};

// The kernels for one element type of x, as function pointers. force_group.cuh: whole groups in
// shared memory; force_rows.cuh: any size.
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
