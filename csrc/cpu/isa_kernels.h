// The entry points of one instruction set. Many small groups are shared out whole, one thread each.
// Otherwise the threads share each group's tiles.
#pragma once

#include <vector>

#include "library.h"
#include "sigmoid_passes.h"
#include "similarity_backward.h"
#include "similarity_forward.h"

namespace fused_contrastive::FUSED_ISA {

// The multiply-adds that are worth a thread.
constexpr double SHARE = 1 << 23;
// The most multiply-adds of a group that one thread takes whole.
constexpr double SMALL = 1 << 24;

template <class Pass, class Arguments>
void run_groups(const Arguments& f, Runtime* runtime) {
  const double work = Pass::work(f), all = work * double(f.G);
  const int threads = int(std::min<double>(runtime->threads, std::max(1.0, all / SHARE)));
  if (f.G == 1 || threads == 1 || work > SMALL) {
    Pass pass(f, runtime, threads);
    for (int64_t g = 0; g < f.G; ++g) pass.run(g);
    return;
  }
  std::vector<std::unique_ptr<Pass>> passes;
  for (int64_t i = 0; i < std::min<int64_t>(threads, f.G); ++i)
    passes.push_back(std::make_unique<Pass>(f, runtime, 1));
  std::atomic<int64_t> next{0};
  Team(runtime, int(passes.size()), 0).run([&](Worker& worker) {
    for (int64_t g; (g = next.fetch_add(1, std::memory_order_relaxed)) < f.G;)
      passes[size_t(worker.thread())]->run(g);
  });
}

template <class C>
Kernels kernels_of() {
  return {[](const SimilarityForward& f, Runtime* runtime) {
            run_groups<SimilarityForwardPass<C>>(f, runtime);
          },
          [](const SimilarityBackward& f, Runtime* runtime) {
            run_groups<SimilarityBackwardPass<C>>(f, runtime);
          },
          [](const SigmoidForward& f, Runtime* runtime) {
            run_groups<SigmoidForwardPass<C>>(f, runtime);
          },
          [](const SigmoidBackward& f, Runtime* runtime) {
            run_groups<SigmoidBackwardPass<C>>(f, runtime);
          }};
}

}  // namespace fused_contrastive::FUSED_ISA
