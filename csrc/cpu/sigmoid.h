// Arguments of the sigmoid kernels. fused_contrastive/ops/sigmoid.py defines every quantity.
#pragma once

#include "problem.h"

namespace fused_contrastive {

// `bias` is null: biases are those of the rows.
struct SigmoidForward : Problem {
  int sign;
  const void* row_bias;  // T [G, M] or null
  bool normalize;
  void *rows, *pos, *row_max;  // T, null when absent
};

struct SigmoidBackward : Problem {
  int sign;
  const void *row_bias, *g, *pos;  // T, null when absent
  bool need_scale;
  double* dscale;  // [G]
  void* dbias;     // T [G, M] or null
};

}  // namespace fused_contrastive
