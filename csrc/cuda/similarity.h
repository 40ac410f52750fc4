// Host entry points of the similarity family's kernels: plain pointers and sizes, no torch. Absent
// tensors are null. fused_contrastive/ops/similarity.py defines every quantity. The sigmoid family
// calls launch_prepare and launch_finish_backward, too.
#pragma once

#include "platform.cuh"

namespace fused_contrastive {

struct Problem;
struct ReduceParams;
struct WeightParams;
struct RowsParams;

// Log-sum-exps are [2, G, M] (rows) and [2, G, N] (cols): first the values rounded to the
// accumulation type, then what the rounding lost.

// How float32 matrices are multiplied.
enum class Float32 { tf32 = 0, tf32x3 = 1, fma = 2 };

// The tile kernels of one matrix precision, as function pointers.
struct PairKernels {
  void (*pair_reduce)(const ReduceParams&, Stream);
  void (*pair_weight)(const WeightParams&, Stream);
};
struct TileKernels {
  PairKernels pairs;
  void (*fused_rows)(const RowsParams&, Stream);
};
extern const TileKernels BF16_KERNELS, F16_KERNELS, TF32_KERNELS, TF32X3_KERNELS, FMA_KERNELS,
    F64_KERNELS;
// The kernels with wgmma and tensor copies, for compute capability 9.0 alone. They need x, y and
// each of their rows to be aligned to 16 bytes.
extern const PairKernels BF16_SM90_KERNELS, F16_SM90_KERNELS;

// The rows of one set, x [G, count, D] of type `input`, and what becomes of them: hat = round(x
// inv) with inv = 1 / max(|x|, 1e-12).
struct PrepareSet {
  const void* x;
  void *hat, *inv;
  Type input;
  int count;
};
struct PrepareParams {
  PrepareSet set[2];
  const void* bias;  // [G, bias_count]
  float* bound;      // [G, 3], zeroed
  int G, D, bias_count;
  bool normalize;
};
void launch_prepare(const PrepareParams& p, Type matrix, Stream stream);

struct FinishForwardParams {
  const void *slots, *x, *y, *bias, *scale;
  void *rows, *cols, *pos, *loss, *row_max, *col_max;
  int G, M, N, D, positive, super_rows;
  bool symmetric;
};
void launch_finish_forward(const FinishForwardParams& p, Type matrix, Stream stream);

struct TermsParams {
  const void *g_rows, *g_cols, *rows, *cols, *pos;
  void *row_terms, *col_terms, *pull;
  float* unit;
  int G, M, N, positive;
  // Whether one element of g_rows, or of g_cols, stands for all.
  bool same_g_rows, same_g_cols;
};
void launch_terms(const TermsParams& p, Type matrix, Stream stream);

// Arguments of finish_backward, the gradient of one set: x [G, X, D] beside the other set y [G, Y,
// D].
struct FinishBackwardParams {
  const void *gradient, *x, *y, *given, *inv, *pull, *scale;
  const float* unit;
  void* dx;
  double* radial;
  Type output;
  int G, X, Y, D, positive;
  bool near, far, halved;
};
void launch_finish_backward(const FinishBackwardParams& p, Type matrix, Stream stream);

struct FinishWeightedParams {
  const void *slots, *partial;
  void *rows, *row_max, *mean;
  int G, M, D, splits;
};
void launch_finish_weighted(const FinishWeightedParams& p, Type matrix, Stream stream);

// How many rows one block of finish_backward serves. `radial` has one element per block.
constexpr int FINISH_ROWS = 8;

}  // namespace fused_contrastive
