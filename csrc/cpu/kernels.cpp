// Compiled once for each ISA, with the macros of vec.h and gemm.h.
#include "kernels.h"

namespace fused_contrastive::FUSED_ISA {

Kernels kernels([[maybe_unused]] Type matrix) {
#if defined(FUSED_BF16)
  return kernels_of<PairedBFloat16>();
#else
  return matrix == Type::Double ? kernels_of<Native<double> >() : kernels_of<Native<float> >();
#endif
}

}  // namespace fused_contrastive::FUSED_ISA
