// What the bindings (similarity_ops.cpp) and the kernels of every ISA agree on; no torch headers,
// so that a kernel file compiles in seconds.
//
// All G groups have the same sizes. Matrices are row-major; strides are in elements. T is the
// accumulation type: double for float64 matrices, else float. Definitions of every quantity:
// fused_contrastive/ops.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_contrastive {

enum class Type { Float, Double, BFloat16, Half };

enum class Kind { All, NotSelf, NotPair, OtherKey, SameKey };

// Runs body(0) ... body(n - 1) on up to n threads, and hands out memory that lives until the op
// returns.
struct Runtime {
  int threads;
  void* (*allocate)(Runtime*, size_t bytes);
  void (*parallel)(Runtime*, int n, void (*body)(void*, int), void* context);
};

// One set of vectors: the input x, what the forward saved of it, and its gradient. Group strides of
// hat, inv and gradient are n * D and n. hat is null where x is it already; inv is null without
// normalisation.
struct Set {
  const void* x;
  Type type;
  int64_t group_stride, row_stride;
  int64_t n;
  void* hat;
  void* inv;
  void* gradient;
};

struct Problem {
  int64_t G, D;
  Set a, b;  // one set: b is a copy of a
  bool one_set;
  Type matrix;
  double scale;
  const void* bias;  // T [G, N] or null
  Kind kind;
  int64_t offset, stride, positive;
  const int32_t *key_a, *key_b;  // [G, M] and [G, N] ranks of the keys, or null
};

struct Forward : Problem {
  bool normalize;
  void *rows, *cols, *pos, *loss, *row_max, *col_max,
      *mean;  // T, null when absent; rows and cols in two parts
};

struct Backward : Problem {
  const void *g_rows, *g_cols, *rows, *cols, *pos, *mean;  // T, null when absent
  bool need_scale;
  double* dscale;  // [G]
  void* dbias;     // T [G, N] or null
};

// The sigmoid family (fused_contrastive/sigmoid_ops.py); `bias` is null.
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

struct Kernels {
  void (*forward)(const Forward&, Runtime*);
  void (*backward)(const Backward&, Runtime*);
  void (*sigmoid_forward)(const SigmoidForward&, Runtime*);
  void (*sigmoid_backward)(const SigmoidBackward&, Runtime*);
};

// The kernels of one ISA by matrix type. bf16 and fp16 matrices are widened to float tiles, except
// where the ISA multiplies bf16.
namespace portable {
Kernels kernels(Type matrix);
}
namespace avx2 {
Kernels kernels(Type matrix);
}
namespace avx512 {
Kernels kernels(Type matrix);
}
namespace avx512_bf16 {
Kernels kernels(Type matrix);
}

}  // namespace fused_contrastive
