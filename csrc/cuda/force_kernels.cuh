// Instantiates and launches the kernels of the force family for one element type.
#pragma once

#include "force_finish.cuh"
#include "force_group.cuh"
#include "force_rows.cuh"
#include "force_weights.cuh"

namespace fused_contrastive {

// Launches one block per 64 rows of `count`, part of the columns, group, and chunk of temperatures.
template <class T>
void launch_rows(void (*kernel)(ForceParams), const ForceParams& p, int count, int chunks,
                 Stream stream) {
  const int64_t blocks =
      static_cast<int64_t>(p.G) * chunks * p.splits * ceil_div(count, Distances<T>::TILE);
  launch(kernel, blocks, Distances<T>::THREADS, RowView<T>::SHARED, stream, p);
}

template <class T>
void launch_group(void (*kernel)(ForceParams), const ForceParams& p, Stream stream) {
  const int64_t shared = Group<T, 4>::shared_bytes(p);
  if (p.P > 256 || shared > int64_t(1) << 20) {
    throw std::runtime_error("a group of " + std::to_string(p.P) +
                             " points does not fit into shared memory");
  }
  launch(kernel, p.G, Distances<T>::THREADS, static_cast<int>(shared), stream, p);
}

template <class T>
constexpr ForceKernels force_kernels() {
  ForceKernels k{};
  k.group = [](const ForceParams& p, Stream stream) {
    launch_group<T>(p.P > 128 ? force_group<T, 8> : force_group<T, 4>, p, stream);
  };
  k.group_gradient = [](const ForceParams& p, Stream stream) {
    launch_group<T>(force_group_gradient<T>, p, stream);
  };
  k.distances = [](const ForceParams& p, Stream stream) {
    launch_rows<T>(force_distances<T>, p, p.rows, 1, stream);
  };
  k.log_sums = [](const ForceParams& p, Stream stream) {
    launch_rows<T>(force_log_sums<T>, p, p.rows, ceil_div(p.K, RowView<T>::CHUNK_K), stream);
  };
  k.affinities = [](const ForceParams& p, Stream stream) {
    launch_rows<T>(p.rms ? force_affinities<T, true> : force_affinities<T, false>, p,
                   p.rms ? p.P : p.rows, ceil_div(p.K, RowView<T>::CHUNK_K), stream);
  };
  k.weights = [](const ForceParams& p, Stream stream) {
    launch_rows<T>(force_weights<T>, p, p.count, 1, stream);
  };
  k.inverses = [](const ForceParams& p, Stream stream) {
    launch_rows<T>(force_inverses<T>, p, p.count, 1, stream);
  };
  k.merge = [](const ForceMergeParams& p, Stream stream) {
    launch(force_merge<T>, ceil_div(p.count, int64_t(32 * WARPS)), 32 * WARPS, 0, stream, p);
  };
  k.norms = [](const ForceParams& p, Stream stream) {
    const int shared = 2 * WARPS * static_cast<int>(sizeof(double));
    launch(force_norms<T>, static_cast<int64_t>(p.K) * p.G, 32 * WARPS, shared, stream, p);
  };
  return k;
}

}  // namespace fused_contrastive
