// The product of a group's weights, in shared memory, with the differences of its coordinates:
// sum_j w_ij (x_j - x_i). It is exactly 0 where all points are equal. Nothing is lost where a row's
// neighbours are near it and all far from the others.
#pragma once

#include "force_distance.cuh"

namespace fused_contrastive {

// Tiles are 64 rows x 64 features, over 16 points at a time. Points are loaded into registers while
// those before are multiplied. Per four points a thread loads 8 x 16 bytes for 128 arithmetic
// instructions.
template <class T>
struct Coordinates {
  using Acc = typename Accumulation<T>::type;
  using Loop = Distances<T>;
  static constexpr int TILE = Loop::TILE, THREADS = Loop::THREADS, SIZE = Unit<Acc>::SIZE;
  static constexpr int DEPTH = 16, LOADS = DEPTH / 16,
                       WIDTH = TILE + SIZE;  // a stage of coordinates: [DEPTH][WIDTH]
  static constexpr int SHARED = 2 * DEPTH * WIDTH * static_cast<int>(sizeof(Acc));

  const T* x;  // [P, D]
  int P, D;
  int width;  // elements of a row of weights
  Acc* stages;

  // Computes rows i0 .. of out [count, D], up to 64 of them, from w [count, width].
  template <class Out>
  __device__ void multiply(const Acc* w, int i0, int count, Out* out) const {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll 1
    for (int d0 = 0; d0 < D; d0 += TILE) {
      Acc place[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int64_t row = i0 + min(ty + 16 * r, count - 1);
        const Four<T> four = load_four(x + row * D, d0 + 4 * tx, D);
#pragma unroll
        for (int c = 0; c < 4; ++c) place[r][c] = static_cast<Acc>(to_float(four.v[c]));
      }
      Acc sum[4][4] = {};
      Four<T> staged[LOADS];
      load(staged, 0, d0);
      store(staged, stages);
      for (int j0 = 0, stage = 0; j0 < P; j0 += DEPTH, stage ^= 1) {
        __syncthreads();  // as in the loop over distances
        if (j0 + DEPTH < P) load(staged, j0 + DEPTH, d0);
        const Acc* y = stages + stage * (DEPTH * WIDTH);
        for (int j = 0; j < min(DEPTH, width - j0); j += SIZE) {
          Unit<Acc> own[4];
#pragma unroll
          for (int r = 0; r < 4; ++r)
            own[r] = load_unit(w + min(ty + 16 * r, count - 1) * width + j0 + j);
#pragma unroll
          for (int e = 0; e < SIZE; ++e) {
            Acc value[4];
#pragma unroll
            for (int c = 0; c < 4; c += SIZE) {
              const Unit<Acc> unit = load_unit(y + (j + e) * WIDTH + 4 * tx + c);
#pragma unroll
              for (int n = 0; n < SIZE; ++n) value[c + n] = unit.v[n];
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
              for (int c = 0; c < 4; ++c)
                sum[r][c] = fma(own[r].v[e], value[c] - place[r][c], sum[r][c]);
            }
          }
        }
        if (j0 + DEPTH < P) store(staged, stages + (stage ^ 1) * (DEPTH * WIDTH));
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int row = ty + 16 * r, column = d0 + 4 * tx + c;
          if (row < count && column < D)
            from_float(sum[r][c], out[static_cast<int64_t>(row) * D + column]);
        }
      }
      __syncthreads();
    }
  }
  __device__ void load(Four<T> (&staged)[LOADS], int j0, int d0) const {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int n = 0; n < LOADS; ++n) {
      const int64_t point = min(j0 + ty + 16 * n, P - 1);
      staged[n] = load_four(x + point * D, d0 + 4 * tx, D);
    }
  }
  __device__ void store(const Four<T> (&staged)[LOADS], Acc* stage) const {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int n = 0; n < LOADS; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const Acc value = static_cast<Acc>(to_float(staged[n].v[c]));
        stage[(ty + 16 * n) * WIDTH + 4 * tx + c] = value;
      }
    }
  }
};

}  // namespace fused_contrastive
