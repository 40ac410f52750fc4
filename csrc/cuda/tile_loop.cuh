// The tile main loop: every kernel that multiplies runs this one, with its own epilogue for a finished tile of products.
#pragma once

#include "products.cuh"

namespace fused_contrastive {

// One side of the products: rows [0, count) of `bytes` bytes each, contiguous. ALIGNED rows start at multiples of 16 bytes.
struct Operand {
  const unsigned char* data;
  int count;
  int64_t bytes;
  bool aligned;
};

template <class T>
__device__ inline Operand operand(const void* x, int64_t group, int count, int D) {
  const int64_t bytes = static_cast<int64_t>(D) * static_cast<int64_t>(sizeof(T));
  const unsigned char* data = static_cast<const unsigned char*>(x) + group * count * bytes;
  return {data, count, bytes, (reinterpret_cast<uint64_t>(x) & 15) == 0 && bytes % 16 == 0};
}

// ROWS rows from `first` on, CHUNKS chunks from byte `begin` on, into swizzled chunks of shared memory. Rows past the end
// repeat the last one (epilogues mask them), bytes past the end are zeros.
template <class T, int ROWS, int CHUNKS, int THREADS>
__device__ inline void load_tile(unsigned char* shared, const Operand& x, int first, int64_t begin) {
  constexpr int UNITS = CHUNK / 16;
#pragma unroll
  for (int place = static_cast<int>(threadIdx.x); place < ROWS * UNITS * CHUNKS; place += THREADS) {
    const int unit = place % UNITS, row = place / UNITS % ROWS, chunk = place / UNITS / ROWS;
    const int64_t byte = begin + chunk * CHUNK + unit * 16;
    const unsigned char* source = x.data + min(first + row, x.count - 1) * x.bytes;
    unsigned char* target = shared + chunk * (ROWS * CHUNK) + swizzled(row, unit);
    const int valid = static_cast<int>(max(int64_t(0), min(int64_t(16), x.bytes - byte)));
    if (x.aligned) {
      copy_async(target, valid > 0 ? source + byte : x.data, valid);
    } else {
      constexpr int SIZE = static_cast<int>(sizeof(T));
#pragma unroll
      for (int e = 0; e < 16; e += SIZE) {
        *reinterpret_cast<T*>(target + e) = e < valid ? *reinterpret_cast<const T*>(source + byte + e) : T{};
      }
    }
  }
}

// Runs `epilogue(s, tile, columns)` on the products of every tile of `tiles`, in order: s the warp's accumulators, `columns` the
// tile's right operand in shared memory where WHOLE.
//
// A ring of STAGES buffers is filled ahead by asynchronous copies, across tile borders, so that an epilogue hides the next
// tile's loads. WHOLE (D <= CHUNKS chunks): a stage is a whole tile of columns and the rows stay resident. Otherwise a stage is
// one chunk of both sides.
template <class P, int STAGES_, bool WHOLE = false, int CHUNKS = 1>
struct TileLoop {
  using Element = typename P::Element;
  using Acc = typename P::Acc;
  static constexpr int STAGES = STAGES_;
  static constexpr int ROWS_BYTES = P::BM * CHUNK * CHUNKS, COLUMNS_BYTES = P::BN * CHUNK * CHUNKS;
  static constexpr int STAGE = WHOLE ? COLUMNS_BYTES : ROWS_BYTES + COLUMNS_BYTES;
  static constexpr int SHARED = STAGES * STAGE + (WHOLE ? ROWS_BYTES : 0);

  template <class Tiles, class Epilogue>
  static __device__ void run(const Operand& a, const Operand& b, Tiles tiles, Epilogue& epilogue, unsigned char* shared) {
    const int steps = WHOLE ? 1 : static_cast<int>(ceil_div(a.bytes, int64_t(CHUNK)));
    const int row = P::warp_row(), column = P::warp_column();
    unsigned char* resident = shared + STAGES * STAGE;
    Tiles ahead = tiles;
    int step_ahead = 0;
    auto fill = [&](int stage) {
      if (ahead.valid()) {
        unsigned char* target = shared + stage * STAGE;
        if (!WHOLE) load_tile<Element, P::BM, 1, P::THREADS>(target + COLUMNS_BYTES, a, ahead.i, step_ahead * int64_t(CHUNK));
        load_tile<Element, P::BN, CHUNKS, P::THREADS>(target, b, ahead.j, step_ahead * int64_t(CHUNK));
        if (++step_ahead == steps) {
          step_ahead = 0;
          ahead.next();
        }
      }
      copy_commit();
    };
    if (WHOLE) load_tile<Element, P::BM, CHUNKS, P::THREADS>(resident, a, tiles.i, 0);
    for (int stage = 0; stage < STAGES - 1; ++stage) fill(stage);

    int stage = 0;
    for (; tiles.valid(); tiles.next()) {
      Acc s[P::MB][P::NB][2] = {};
      const unsigned char* current = shared;
      for (int step = 0; step < steps; ++step) {
        copy_wait<STAGES - 2>();
        __syncthreads();  // the stage has landed for all, and all are done with the one before
        fill(stage == 0 ? STAGES - 1 : stage - 1);
        current = shared + stage * STAGE;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
          const unsigned char* rows = WHOLE ? resident + chunk * (P::BM * CHUNK) : current + COLUMNS_BYTES;
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

}  // namespace fused_contrastive
