// The kernels of every instruction set (isa_kernels.cpp), and those in use (library.cpp).
#pragma once

#include <string>

#include "force.h"
#include "sigmoid.h"
#include "similarity.h"

namespace fused_contrastive {

// The kernels of one instruction set for one matrix type. bf16 and fp16 matrices are widened to
// float tiles, except where the instruction set multiplies bf16.
struct Kernels {
  void (*forward)(const SimilarityForward&, Runtime*);
  void (*backward)(const SimilarityBackward&, Runtime*);
  void (*sigmoid_forward)(const SigmoidForward&, Runtime*);
  void (*sigmoid_backward)(const SigmoidBackward&, Runtime*);
};

// The force kernels of one instruction set for one accumulation type.
struct ForceKernels {
  void (*force)(const Force&, Runtime*);
  void (*distances)(const Distances&, Runtime*);
};

namespace portable {
Kernels kernels(Type matrix);
ForceKernels force_kernels(Type accumulation);
}  // namespace portable
namespace avx2 {
Kernels kernels(Type matrix);
ForceKernels force_kernels(Type accumulation);
}  // namespace avx2
namespace avx512 {
Kernels kernels(Type matrix);
ForceKernels force_kernels(Type accumulation);
}  // namespace avx512
namespace avx512_bf16 {
Kernels kernels(Type matrix);
}  // namespace avx512_bf16

// The instruction sets that this library and this CPU have, from the weakest to the best, with
// spaces between them. The best one is in use until `choose_isa` is called with the index of
// another.
std::string isas();
void choose_isa(int isa);

// The kernels of the instruction set in use.
Kernels kernels_for(Type matrix);
ForceKernels force_kernels_for(Type accumulation);

}  // namespace fused_contrastive
