// The plain structures that the Python module and the kernels share. Neither knows torch, so that
// the library compiles without it and serves every version. All G groups have the same sizes.
// Matrices are row-major, and strides are in elements. T is the accumulation type: double for
// float64 matrices, else float.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_contrastive {

enum class Type { Float, Double, BFloat16, Half };

// Which pairs are candidates (fused_contrastive/problem.py).
enum class Kind { All, NotSelf, NotPair, OtherKey, SameKey };

// Runs body(0) ... body(n - 1) on up to n threads, and hands out memory that lives until the op
// returns.
struct Runtime {
  int threads;
  void* (*allocate)(Runtime*, size_t bytes);
  void (*parallel)(Runtime*, int n, void (*body)(void*, int), void* context);
};

// One set of vectors: the input x, what the forward op saved of it, and its gradient.
//
// The group strides of hat, inv and gradient are n * D, n and n * D. hat is null where x itself is
// what the products read; inv is null without normalisation.
struct Set {
  const void* x;
  Type type;
  int64_t group_stride, row_stride;
  int64_t n;
  void* hat;
  void* inv;
  void* gradient;
};

// The problem that the similarity and the sigmoid family share: two sets of vectors, or one set
// with itself, the logits' scale and bias, and the candidates.
struct Problem {
  int64_t G, D;
  Set a, b;  // With one set, b is a copy of a.
  bool one_set;
  Type matrix;
  double scale;
  const void* bias;  // T [G, N] or null
  Kind kind;
  int64_t offset, stride, positive;
  const int32_t *key_a, *key_b;  // [G, M] and [G, N] ranks of the keys, or null
};

}  // namespace fused_contrastive
