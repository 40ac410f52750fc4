// The library: the choice among instruction sets, and the Python module. The ops register
// themselves: similarity_ops.cpp, sigmoid_ops.cpp, force_ops.cpp.
#include "library.h"

#include <Python.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

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

std::string isa() { return ISA_NAMES[chosen_isa]; }

void set_isa(const std::string& name) {
  const auto* found = std::find(std::begin(ISA_NAMES), std::end(ISA_NAMES), name);
  TORCH_CHECK_VALUE(found != std::end(ISA_NAMES),
                    "isa must be portable, avx2, avx512 or avx512_bf16, got ", name);
  const Isa wanted = Isa(found - ISA_NAMES);
  TORCH_CHECK_VALUE(wanted <= best_isa(), "this CPU has no ", name, ": its best is ",
                    ISA_NAMES[best_isa()]);
  chosen_isa = wanted;
}

}  // namespace

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

TORCH_LIBRARY(fused_contrastive_cpu, m) {
  m.def("isa() -> str", &isa);
  m.def("set_isa(str name) -> ()", &set_isa);
}

}  // namespace fused_contrastive

// Importing the module runs the registrations above; it has no Python functions of its own.
PyMODINIT_FUNC PyInit__C_cpu(void) {
  // fused_contrastive/backends/cpu.py looks for this mark in the file before it loads the library.
  static const char* const mark = "fused_contrastive for torch " FUSED_TORCH_VERSION ";";
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cpu", mark, -1, nullptr};
  return PyModule_Create(&module);
}
