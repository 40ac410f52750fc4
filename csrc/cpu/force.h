// What the bindings (force_ops.cpp) and the force kernels of every ISA agree on; no torch headers.
// Definitions of every quantity: fused_contrastive/force_ops.py. T is the accumulation type: double
// for float64 points, else float.
#pragma once

#include "problem.h"

namespace fused_contrastive {

// x [G, P, D], unit stride along D.
struct Points {
  const void* x;
  Type type;
  int64_t group_stride, row_stride, G, P, D;
};

struct Force : Points {
  int64_t K, rows, negatives;
  bool all_rows, mask, rms, separate;
  double self_logit, floor, denominator, clip;
  const void *inverse_temperatures, *given_scale, *weight;  // T [K], [G] or null, [G, P] or null
  void *force, *log_norm, *scale, *lse_rows, *lse_cols, *shift, *sums;
};

// Sums of distances [G, rows], or, with `upstream` [G], their gradient [G, P, D] in the points'
// type.
struct Distances : Points {
  int64_t rows;
  double clip;
  const void *weight, *upstream;
  void *sums, *gradient;
};

// The force kernels of one ISA.
struct ForceKernels {
  void (*force)(const Force&, Runtime*);
  void (*distances)(const Distances&, Runtime*);
};

namespace portable {
ForceKernels force_kernels(Type accumulation);
}
namespace avx2 {
ForceKernels force_kernels(Type accumulation);
}
namespace avx512 {
ForceKernels force_kernels(Type accumulation);
}

}  // namespace fused_contrastive
