// Arguments of the tile kernels: plain pointers and sizes, passed by value.
#pragma once

#include "platform.cuh"

namespace fused_contrastive {

enum Kind { ALL = 0, NOT_SELF = 1, NOT_PAIR = 2, OTHER_KEY = 3, SAME_KEY = 4 };

// What the tile kernels read: x [G, M, D], y [G, N, D], bias [G, N], keys [G, M] and [G, N]. A null
// pointer means that there is none. Scale and bias are in the accumulation type.
struct Problem {
  const void *x, *y, *bias, *scale;
  const int64_t *key_a, *key_b;
  int G, M, N, D;
  int kind, offset, stride;
};

// Arguments of pair_reduce.cuh. `bound` is [G, 3]: the largest row norm of a, that of b, and the
// largest finite |bias|; null where the kernel needs none. `symmetric` means one set: y is x.
struct ReduceParams {
  Problem p;
  const float* bound;
  void* slots;
  int super_rows;
  bool symmetric, columns, normalized, extrema;
};

// Arguments of pair_weight.cuh. `unit` is the bound on the weights that `terms` computed, or null.
struct WeightParams {
  Problem p;
  const void *row_terms, *col_terms;  // [G, M, 2]; [G, N, 2] or null
  const void* unit;
  void* panel;
  bool mirror;
};

// Arguments of fused_rows.cuh.
struct RowsParams {
  Problem p;
  void *slots, *partial;
  int split_columns;
};

}  // namespace fused_contrastive
