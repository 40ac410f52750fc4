// The choice among the instruction sets that the library was compiled for.
#include "library.h"

namespace fused_contrastive {
namespace {

enum Isa { PORTABLE, AVX2, AVX512, AVX512_BF16 };
constexpr const char* ISA_NAMES[] = {"portable", "avx2", "avx512", "avx512_bf16"};

// The best of the instruction sets that were compiled and that this CPU has.
Isa best_isa() {
  Isa best = PORTABLE;
#if defined(FUSED_AVX2_KERNELS)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = AVX2;
#endif
#if defined(FUSED_AVX512_KERNELS)
  if (best == AVX2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    best = AVX512;
#endif
#if defined(FUSED_AVX512_BF16_KERNELS)
  if (best == AVX512 && __builtin_cpu_supports("avx512bf16")) best = AVX512_BF16;
#endif
  return best;
}

Isa chosen_isa = best_isa();

}  // namespace

std::string isas() {
  std::string names = ISA_NAMES[0];
  for (int isa = 1; isa <= best_isa(); ++isa) names = names + " " + ISA_NAMES[isa];
  return names;
}

void choose_isa(int isa) {
  if (isa >= PORTABLE && isa <= best_isa()) chosen_isa = Isa(isa);
}

Kernels kernels_for(Type matrix) {
#if defined(FUSED_AVX512_BF16_KERNELS)
  if (chosen_isa == AVX512_BF16 && matrix == Type::BFloat16) return avx512_bf16::kernels(matrix);
#endif
#if defined(FUSED_AVX512_KERNELS)
  if (chosen_isa >= AVX512) return avx512::kernels(matrix);
#endif
#if defined(FUSED_AVX2_KERNELS)
  if (chosen_isa == AVX2) return avx2::kernels(matrix);
#endif
  return portable::kernels(matrix);
}

ForceKernels force_kernels_for(Type accumulation) {
#if defined(FUSED_AVX512_KERNELS)
  if (chosen_isa >= AVX512) return avx512::force_kernels(accumulation);
#endif
#if defined(FUSED_AVX2_KERNELS)
  if (chosen_isa >= AVX2) return avx2::force_kernels(accumulation);
#endif
  return portable::force_kernels(accumulation);
}

}  // namespace fused_contrastive
