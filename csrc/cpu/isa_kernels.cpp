// Compiled once for each instruction set, with the macros of vec.h and gemm.h.
#include "isa_kernels.h"

#include "force_pass.h"
#include "glibc.h"

namespace fused_contrastive::FUSED_ISA {

Kernels kernels([[maybe_unused]] Type matrix) {
#if defined(FUSED_BF16)
  return kernels_of<PairedBFloat16>();
#else
  return matrix == Type::Double ? kernels_of<Native<double>>() : kernels_of<Native<float>>();
#endif
}

#if !defined(FUSED_BF16)
template <class T>
ForceKernels force_kernels_of() {
  return {[](const Force& f, Runtime* runtime) { run_groups<ForcePass<T>>(f, runtime); },
          [](const Distances& f, Runtime* runtime) { run_groups<DistancePass<T>>(f, runtime); }};
}

ForceKernels force_kernels(Type accumulation) {
  return accumulation == Type::Double ? force_kernels_of<double>() : force_kernels_of<float>();
}
#endif

}  // namespace fused_contrastive::FUSED_ISA
