// Arguments of the tile kernels: plain pointers and sizes, passed by value.
#pragma once

#include "platform.cuh"

namespace fused_contrastive {

enum Kind { ALL = 0, NOT_SELF = 1, NOT_PAIR = 2, OTHER_KEY = 3, SAME_KEY = 4 };

// What the tile kernels read: x [G, M, D], y [G, N, D], bias [G, N], keys [G, M] and [G, N] (null:
// none), scale and bias in the accumulation type.
struct Problem {
  const void *x, *y, *bias, *scale;
  const int64_t *key_a, *key_b;
  int G, M, N, D;
  int kind, offset, stride;
};

// pair_reduce.cuh
struct ReduceParams {
  Problem p;
  const float*
      bound;  // [G, 3]: largest row norm of a, of b, largest finite |bias|; null: none is read
  void* slots;
  int super_rows;
  bool symmetric, columns, normalized, extrema;  // symmetric: one set, y is x
};

// pair_weight.cuh
struct WeightParams {
  Problem p;
  const void *row_terms, *col_terms;  // [G, M, 2], [G, N, 2] or null
  const void* unit;                   // terms' bound on the weights, or null
  void* panel;
  bool mirror;
};

// fused_rows.cuh
struct RowsParams {
  Problem p;
  void *slots, *partial;
  int split_columns;
};

}  // namespace fused_contrastive
