// Arguments of the similarity kernels. fused_contrastive/ops/similarity.py defines every quantity.
#pragma once

#include "problem.h"

namespace fused_contrastive {

struct SimilarityForward : Problem {
  bool normalize;
  // Outputs in T, null when absent; rows and cols are in two parts, [2, G, M] and [2, G, N].
  void *rows, *cols, *pos, *loss, *row_max, *col_max, *mean;
};

struct SimilarityBackward : Problem {
  const void *g_rows, *g_cols, *rows, *cols, *pos, *mean;  // T, null when absent
  bool need_scale;
  double* dscale;  // [G]
  void* dbias;     // T [G, N] or null
};

}  // namespace fused_contrastive
