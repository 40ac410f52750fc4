// The main loop over tiles. Every kernel that multiplies runs this one, with its own epilogue for a
// finished tile of products. On sm_90 it is the loop of products_sm90.cuh, where tensor copies can
// read the matrices.
#pragma once

#include "problem.h"
#include "products.cuh"

namespace fused_contrastive {

// One side of the products: rows [0, count), which are contiguous.
struct Operand {
  const unsigned char* data;
  int count;
};

template <class T>
__device__ inline Operand operand(const void* x, int64_t group, int count, int D) {
  return {reinterpret_cast<const unsigned char*>(static_cast<const T*>(x) + group * count * D),
          count};
}

// Copies ROWS rows from `first` on into swizzled chunks of shared memory: CHUNKS chunks of `bytes`
// bytes each, from byte `begin` on. Rows past the end repeat the last one, and epilogues mask them.
// Bytes past the end are zeros.
template <class T, int ROWS, int CHUNKS, int THREADS>
__device__ inline void load_tile(unsigned char* shared, const Operand& x, int first, int bytes,
                                 int begin) {
  constexpr int UNITS = CHUNK / 16;
  const bool aligned = ((reinterpret_cast<uint64_t>(x.data) | bytes) & 15) == 0;
#pragma unroll
  for (int place = static_cast<int>(threadIdx.x); place < ROWS * UNITS * CHUNKS; place += THREADS) {
    const int unit = place % UNITS, row = place / UNITS % ROWS, chunk = place / UNITS / ROWS;
    const int byte = begin + chunk * CHUNK + unit * 16, valid = max(0, min(16, bytes - byte));
    const unsigned char* source =
        x.data + static_cast<int64_t>(min(first + row, x.count - 1)) * bytes;
    unsigned char* target = shared + chunk * (ROWS * CHUNK) + swizzled(row, unit);
    if (aligned) {
      copy_async(target, valid > 0 ? source + byte : x.data, valid);
    } else {
      constexpr int SIZE = static_cast<int>(sizeof(T));
#pragma unroll
      for (int e = 0; e < 16; e += SIZE) {
        *reinterpret_cast<T*>(target + e) =
            e < valid ? *reinterpret_cast<const T*>(source + byte + e) : T{};
      }
    }
  }
}

// Runs `epilogue(s, tile, columns)` on the products of every tile of `tiles`, in order. s are the
// warp's accumulators, and with WHOLE `columns` is the tile's right operand in shared memory.
//
// Asynchronous copies fill a ring of STAGES buffers ahead, across tile borders, so that an epilogue
// hides the next tile's loads. With WHOLE (D <= CHUNKS chunks) a stage is a whole tile of columns,
// and the rows stay resident. Otherwise a stage is one chunk of both sides.
template <class P, int STAGES_, bool WHOLE = false, int CHUNKS = 1>
struct TileLoop {
  using Element = typename P::Element;
  using Acc = typename P::Acc;
  static constexpr int STAGES = STAGES_;
  static constexpr int AHEAD = STAGES - 1;  // stages filled before they are needed
  static constexpr int ROWS_BYTES = P::BM * CHUNK * CHUNKS, COLUMNS_BYTES = P::BN * CHUNK * CHUNKS;
  static constexpr int STAGE = WHOLE ? COLUMNS_BYTES : ROWS_BYTES + COLUMNS_BYTES;
  static constexpr int SHARED = STAGES * STAGE + (WHOLE ? ROWS_BYTES : 0);

  template <class Tiles, class Epilogue>
  static __device__ void run(const Operand& a, const Operand& b, int D, Tiles tiles,
                             Epilogue& epilogue, unsigned char* shared) {
    const int bytes = D * static_cast<int>(sizeof(Element)),
              steps = WHOLE ? 1 : ceil_div(bytes, CHUNK);
    const int row = P::warp_row(), column = P::warp_column();
    unsigned char* resident = shared + STAGES * STAGE;
    Tiles ahead = tiles;
    int step_ahead = 0;
    auto fill = [&](int stage) {
      if (ahead.valid()) {
        unsigned char* target = shared + stage * STAGE;
        const int begin = step_ahead * CHUNK;
        if (!WHOLE)
          load_tile<Element, P::BM, 1, P::THREADS>(target + COLUMNS_BYTES, a, ahead.i, bytes,
                                                   begin);
        load_tile<Element, P::BN, CHUNKS, P::THREADS>(target, b, ahead.j, bytes, begin);
        if (++step_ahead == steps) {
          step_ahead = 0;
          ahead.next();
        }
      }
      copy_commit();
    };
    if (WHOLE) load_tile<Element, P::BM, CHUNKS, P::THREADS>(resident, a, tiles.i, bytes, 0);
    for (int stage = 0; stage < AHEAD; ++stage) fill(stage);

    int stage = 0;
    for (; tiles.valid(); tiles.next()) {
      Acc s[P::MB][P::NB][2] = {};
      const unsigned char* current = shared;
      for (int step = 0; step < steps; ++step) {
        copy_wait<AHEAD - 1>();
        __syncthreads();  // The stage has landed, and the one filled next is free.
        fill(stage + AHEAD < STAGES ? stage + AHEAD : stage + AHEAD - STAGES);
        current = shared + stage * STAGE;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
          const unsigned char* rows =
              WHOLE ? resident + chunk * (P::BM * CHUNK) : current + COLUMNS_BYTES;
          P::multiply(s, rows, row, current + chunk * (P::BN * CHUNK), column);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
      }
      epilogue(s, tiles, current);
    }
    copy_wait<0>();
    __syncthreads();
  }
};

// The loop of pair_reduce and pair_weight, over the tiles `tiles` of group tiles.g.
template <class P, int STAGES>
struct PairLoop : TileLoop<P, STAGES> {
  static constexpr int THREADS = P::THREADS;
  // Whether a block runs several tiles where it may. They are of one group.
  static constexpr bool PERSISTENT = false;

  // What the loop reads; the host makes it and hands it to the kernel.
  struct Sources {
    explicit Sources(const Problem&) {}
  };

  template <class Tiles, class Epilogue>
  static __device__ void run(const Sources&, const Problem& p, Tiles tiles, Epilogue& epilogue,
                             unsigned char* shared) {
    using Element = typename P::Element;
    TileLoop<P, STAGES>::run(operand<Element>(p.x, tiles.g, p.M, p.D),
                             operand<Element>(p.y, tiles.g, p.N, p.D), p.D, tiles, epilogue,
                             shared);
  }
};

// How many blocks of a kernel over pairs an SM holds.
template <class Loop, class Params>
struct Arguments {
  typename Loop::Sources sources;
  Params params;
};

}  // namespace fused_contrastive
