// Arguments of the force kernels. fused_contrastive/ops/force.py defines every quantity. T is the
// accumulation type: double for float64 points, else float.
#pragma once

#include "problem.h"

namespace fused_contrastive {

// The points x [G, P, D], with unit stride along D.
struct Points {
  const void* x;
  Type type;
  int64_t group_stride, row_stride, G, P, D;
};

struct Force : Points {
  int64_t K, rows, negatives;
  bool all_rows, mask, rms, separate;
  double self_logit, floor, denominator, clip;
  // T [K]; T [G] or null; T [G, P] or null.
  const void *inverse_temperatures, *given_scale, *weight;
  void *force, *log_norm, *scale, *lse_rows, *lse_cols, *shift, *sums;
};

// The sums of distances [G, rows], or with `upstream` [G] their gradient [G, P, D] in the points'
// type.
struct Distances : Points {
  int64_t rows;
  double clip;
  const void *weight, *upstream;
  void *sums, *gradient;
};

}  // namespace fused_contrastive
