// The entry points of one ISA. Many small groups are shared out whole, one thread each; otherwise the threads share each group's tiles.
#pragma once

#include <vector>

#include "backward.h"

namespace fused_contrastive::FUSED_ISA {

constexpr double ALONE = 1 << 21;   // multiply-adds below which starting threads costs more than it gains
constexpr double SMALL = 1 << 24;   // ... of a group that one thread takes whole

template <class Pass, class Arguments>
void run_groups(const Arguments& f, Runtime* runtime) {
  const double work = double(f.a.n) * double(f.b.n) * double(f.D) * (f.one_set ? 0.5 : 1);
  const int threads = work * double(f.G) < ALONE ? 1 : runtime->threads;
  if (f.G == 1 || threads == 1 || work > SMALL) {
    Pass pass(f, runtime, threads);
    for (int64_t g = 0; g < f.G; ++g) pass.run(g);
    return;
  }
  std::vector<std::unique_ptr<Pass>> passes;
  for (int64_t i = 0; i < std::min<int64_t>(threads, f.G); ++i) passes.push_back(std::make_unique<Pass>(f, runtime, 1));
  Team team(runtime, int(passes.size()), 0);
  team.tasks(f.G, [&](int64_t g, int thread) { passes[size_t(thread)]->run(g); });
}

template <class C>
Kernels kernels_of() {
  return {[](const Forward& f, Runtime* runtime) { run_groups<ForwardPass<C>>(f, runtime); },
          [](const Backward& f, Runtime* runtime) { run_groups<BackwardPass<C>>(f, runtime); }};
}

}  // namespace fused_contrastive::FUSED_ISA
