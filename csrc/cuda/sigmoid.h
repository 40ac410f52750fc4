// Host entry points of the kernels of the sigmoid family: plain pointers and sizes, no torch.
// Absent tensors are null. What is computed: fused_contrastive/sigmoid_ops.py.
#pragma once

#include "problem.h"

namespace fused_contrastive {

// Biases of the rows [G, M] and `sign` as there; Problem::bias is null.
struct SigmoidReduceParams {
  Problem p;
  const void* row_bias;
  void* slots;  // [S, G, M] sums, then, with extrema, as many maxima: S super tiles of columns
  int super_rows, sign;
  bool extrema;
};

// WeightParams with row_terms [G, M, 2] = (row_bias in base 2, g), both times sign, and no
// col_terms or mirror.
struct SigmoidWeightParams : WeightParams {
  void* sums;  // row sums of the tiles [planes, G, M], zeroed, or null
  int sign;
};

struct SigmoidKernels {
  void (*reduce)(const SigmoidReduceParams&, Stream);
  void (*weight)(const SigmoidWeightParams&, Stream);
};
extern const SigmoidKernels BF16_SIGMOID, F16_SIGMOID, TF32_SIGMOID, TF32X3_SIGMOID, FMA_SIGMOID,
    F64_SIGMOID;
// For compute capability 9.0 alone, as BF16_SM90_KERNELS.
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
  bool same_g, same_bias;  // one element, for all
};
void launch_sigmoid_terms(const SigmoidTermsParams& p, Type matrix, Stream stream);

}  // namespace fused_contrastive
