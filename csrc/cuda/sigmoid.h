// Host entry points of the sigmoid family's kernels: plain pointers and sizes, no torch. Absent
// tensors are null. fused_contrastive/ops/sigmoid.py defines every quantity.
#pragma once

#include "problem.h"

namespace fused_contrastive {

// Arguments of sigmoid_reduce. `row_bias` [G, M] and `sign` are those of ops/sigmoid.py;
// Problem::bias is null. `slots` holds sums [S, G, M] for S super tiles of columns. With `extrema`
// as many maxima follow.
struct SigmoidReduceParams {
  Problem p;
  const void* row_bias;
  void* slots;
  int super_rows, sign;
  bool extrema;
};

// Arguments of sigmoid_weight. `row_terms` [G, M, 2] holds (row_bias in base 2, g), both times
// sign. `col_terms` and `mirror` are not used. `sums` receives the row sums of the tiles, [planes,
// G, M]; it is zeroed beforehand, or null.
struct SigmoidWeightParams : WeightParams {
  void* sums;
  int sign;
};

struct SigmoidKernels {
  void (*reduce)(const SigmoidReduceParams&, Stream);
  void (*weight)(const SigmoidWeightParams&, Stream);
};
extern const SigmoidKernels BF16_SIGMOID, F16_SIGMOID, TF32_SIGMOID, TF32X3_SIGMOID, FMA_SIGMOID,
    F64_SIGMOID;
// For compute capability 9.0 alone, with the conditions of BF16_SM90_KERNELS.
extern const SigmoidKernels BF16_SM90_SIGMOID, F16_SM90_SIGMOID;

struct SigmoidFinishParams {
  const void *slots, *x, *y, *row_bias, *scale;
  void *rows, *pos, *row_max;
  int G, M, N, D, positive, supers, sign;
};
void launch_sigmoid_finish(const SigmoidFinishParams& p, Type matrix, Stream stream);

struct SigmoidTermsParams {
  const void *g, *row_bias, *pos;
  void *row_terms, *pull;
  float* unit;
  int G, M, sign;
  // Whether one element of g, or of row_bias, stands for all.
  bool same_g, same_bias;
};
void launch_sigmoid_terms(const SigmoidTermsParams& p, Type matrix, Stream stream);

}  // namespace fused_contrastive
