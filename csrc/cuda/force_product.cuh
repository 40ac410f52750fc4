// The product of a group's weights, in shared memory, with its centred coordinates: x less the first point, less the
// mean of that, so exactly 0 where all points are equal.
#pragma once

#include "force_distance.cuh"

namespace fused_contrastive {

// Tiles of 64 rows x 64 features over 32 points at a time, loaded into registers while those before are multiplied. Per
// four points a thread loads 8 x 16 bytes for 64 multiply-adds.
template <class T>
struct Coordinates {
  using Acc = typename Accumulation<T>::type;
  using Loop = Distances<T>;
  static constexpr int TILE = Loop::TILE, THREADS = Loop::THREADS, SIZE = Unit<Acc>::SIZE;
  static constexpr int DEPTH = 32, WIDTH = TILE + SIZE;  // a stage of coordinates: [DEPTH][WIDTH]
  static constexpr int SHARED = (2 * DEPTH * WIDTH + 6 * TILE) * static_cast<int>(sizeof(Acc));

  const T* x;  // [P, D]
  int P, D;
  int width;  // elements of a row of weights
  Acc* stages;

  // out [count, D] = w [count, P] times the centred coordinates; w [count, width] in shared memory, up to 64 rows.
  template <class Out>
  __device__ void multiply(const Acc* w, int count, Out* out) const {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll 1
    for (int d0 = 0; d0 < D; d0 += TILE) {
      find_centre(d0);
      Acc sum[4][4] = {};
      Four<T> staged[2];
      load(staged, 0, d0);
      store(staged, stages, 0);
      for (int j0 = 0, stage = 0; j0 < P; j0 += DEPTH, stage ^= 1) {
        __syncthreads();  // as in the loop over distances
        if (j0 + DEPTH < P) load(staged, j0 + DEPTH, d0);
        const Acc* y = stages + stage * (DEPTH * WIDTH);
        for (int j = 0; j < min(DEPTH, width - j0); j += SIZE) {
          Unit<Acc> own[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) own[r] = load_unit(w + min(ty + 16 * r, count - 1) * width + j0 + j);
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
              for (int c = 0; c < 4; ++c) sum[r][c] = fma(own[r].v[e], value[c], sum[r][c]);
            }
          }
        }
        if (j0 + DEPTH < P) store(staged, stages + (stage ^ 1) * (DEPTH * WIDTH), j0 + DEPTH);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int row = ty + 16 * r, column = d0 + 4 * tx + c;
          if (row < count && column < D) from_float(sum[r][c], out[static_cast<int64_t>(row) * D + column]);
        }
      }
      __syncthreads();
    }
  }
  // The first point, and the mean of x less that, of features d0 ... Ends with a barrier.
  __device__ Acc* centre() const { return stages + 2 * DEPTH * WIDTH; }  // [2][TILE], behind it parts of sums [4][TILE]
  __device__ void find_centre(int d0) const {
    const int n = static_cast<int>(threadIdx.x) % TILE, part = static_cast<int>(threadIdx.x) / TILE;
    const T* own = x + min(d0 + n, D - 1);
    const Acc first = static_cast<Acc>(to_float(own[0]));
    Acc sum = 0, *sums = centre() + 2 * TILE + n;
    for (int j = part; j < P; j += THREADS / TILE) {
      sum += static_cast<Acc>(to_float(own[static_cast<int64_t>(j) * D])) - first;
    }
    sums[part * TILE] = sum;
    __syncthreads();
    if (part == 0) {
      centre()[n] = first;
      centre()[TILE + n] = (sums[0] + sums[TILE] + sums[2 * TILE] + sums[3 * TILE]) / static_cast<Acc>(P);
    }
    __syncthreads();
  }
  __device__ void load(Four<T> (&staged)[2], int j0, int d0) const {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int64_t point = min(j0 + ty + 16 * n, P - 1);
      staged[n] = load_four(x + point * D, d0 + 4 * tx, D);
    }
  }
  __device__ void store(const Four<T> (&staged)[2], Acc* stage, int j0) const {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const Acc* first = centre() + 4 * tx + c;
        const Acc value = static_cast<Acc>(to_float(staged[n].v[c])) - first[0] - first[TILE];
        stage[(ty + 16 * n) * WIDTH + 4 * tx + c] = j0 + ty + 16 * n < P ? value : Acc(0);
      }
    }
  }
};

}  // namespace fused_contrastive
