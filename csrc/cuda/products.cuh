// The products of one warp, one struct per matrix precision. All have one accumulator layout, so
// that epilogues are written once: 8 x 8 blocks, of which a lane holds row lane / 4, columns 2
// (lane % 4) + {0, 1}.
//
// Operands lie in shared memory as chunks of 64 bytes per row whose 16-byte units are swizzled:
// unit u of row r is stored at place u ^ (r / 2 % 4). Every load below touches eight rows of one
// unit, which then lie in different banks. It is also the hardware's 64-byte swizzle.
#pragma once

#include "instructions.cuh"

namespace fused_contrastive {

constexpr int CHUNK = 64;  // bytes of a row in one chunk

__device__ inline int swizzled(int row, int unit) {
  return row * CHUNK + ((unit ^ (row >> 1 & 3)) << 4);
}

template <class T>
__device__ inline T& element(unsigned char* chunk, int row, int column) {
  const int byte = column * static_cast<int>(sizeof(T));
  return *reinterpret_cast<T*>(chunk + swizzled(row, byte >> 4) + (byte & 15));
}
template <class T>
__device__ inline const T& element(const unsigned char* chunk, int row, int column) {
  return element<T>(const_cast<unsigned char*>(chunk), row, column);
}

// The tiles of a block and of a warp. Every precision below inherits one of these.
template <int BLOCK_M, int BLOCK_N, int WARPS_M_, int WARPS_N_>
struct Shape {
  static constexpr int BM = BLOCK_M, BN = BLOCK_N, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_;
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  // A warp's tile has MB x NB blocks of 8 x 8.
  static constexpr int MB = BM / WARPS_M / 8, NB = BN / WARPS_N / 8;
  // What the products lose on average, relative to their sums. logits.cuh puts it back.
  static constexpr double LOST = 0;
  static __device__ int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 / WARPS_N * (MB * 8);
  }
  static __device__ int warp_column() {
    return static_cast<int>(threadIdx.x) / 32 % WARPS_N * (NB * 8);
  }

  // A team of warps shares TEAM_ROWS whole rows and goes through epilogues together. `sync` is its
  // barrier, `sync_all` that of all threads with epilogues. Tiles leave pair_weight in pieces of
  // PIECE columns.
  static constexpr int TEAM = THREADS, TEAM_ROWS = BM, PIECE = BN;
  static __device__ int team_row() { return 0; }
  static __device__ int team_thread() { return static_cast<int>(threadIdx.x); }
  static __device__ void sync() { __syncthreads(); }
  static __device__ void sync_all() { __syncthreads(); }
};

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) & 31; }

// Fragments of 16 rows (a), or of two blocks of 8 columns (b), for bytes [32 step, 32 step + 32) of
// a chunk.
__device__ inline void load_a(uint32_t (&r)[4], const unsigned char* chunk, int row, int step) {
  const int lane = lane_id();
  load_matrices(r, chunk + swizzled(row + (lane & 15), 2 * step + (lane >> 4)));
}
__device__ inline void load_b(uint32_t (&r)[4], const unsigned char* chunk, int row, int step) {
  const int lane = lane_id();
  load_matrices(r,
                chunk + swizzled(row + (lane >> 4) * 8 + (lane & 7), 2 * step + (lane >> 3 & 1)));
}

// bfloat16 or float16 operands with float32 sums: one mma.m16n8k16 per 4096 flops.
template <class T, class S>
struct Half : S {
  using Element = T;
  using Acc = float;
  // How many blocks of the pair kernels an SM holds, by registers. This holds for the structs
  // below, too.
  static constexpr int BLOCKS = 2;

  // s += a b^T over one chunk, where a is the warp's first row of the block's chunk.
  static __device__ void multiply(float (&s)[S::MB][S::NB][2], const unsigned char* a, int row,
                                  const unsigned char* b, int column) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t fb[S::NB / 2][4];
#pragma unroll
      for (int n = 0; n < S::NB / 2; ++n) load_b(fb[n], b, column + 16 * n, step);
#pragma unroll
      for (int m = 0; m < S::MB / 2; ++m) {
        uint32_t fa[4];
        load_a(fa, a, row + 16 * m, step);
#pragma unroll
        for (int n = 0; n < S::NB; ++n) {
          mma(s[2 * m][n], s[2 * m + 1][n], fa, fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1],
              T{});
        }
      }
    }
  }

  // out += w v, with w in the accumulator layout (16 rows) and v [8 NB, 8 DB] in chunks of `rows`
  // rows.
  template <int NB, int DB>
  static __device__ void accumulate(float (&out)[2][DB][2], const float (&w)[2][NB][2],
                                    const unsigned char* v, int rows) {
    const int lane = lane_id();
#pragma unroll
    for (int k = 0; k < NB / 2; ++k) {
      const uint32_t fa[4] = {pack(w[0][2 * k][0], w[0][2 * k][1], T{}),
                              pack(w[1][2 * k][0], w[1][2 * k][1], T{}),
                              pack(w[0][2 * k + 1][0], w[0][2 * k + 1][1], T{}),
                              pack(w[1][2 * k + 1][0], w[1][2 * k + 1][1], T{})};
#pragma unroll
      for (int d = 0; d < DB / 2; ++d) {
        uint32_t fb[4];
        const unsigned char* chunk = v + d / 2 * rows * CHUNK;
        load_matrices_transposed(fb,
                                 chunk + swizzled(16 * k + (lane & 15), d % 2 * 2 + (lane >> 4)));
        mma(out[0][2 * d], out[1][2 * d], fa, fb[0], fb[1], T{});
        mma(out[0][2 * d + 1], out[1][2 * d + 1], fa, fb[2], fb[3], T{});
      }
    }
  }
};

// float32 operands rounded to tf32, with float32 sums. SPLIT writes x = high + low and takes three
// products, high low + low high + high high, with a relative error of 2^-21 per product.
//
// Tensor cores round their sums toward zero. So these start from zero every time, and ordinary
// additions join them (Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor
// Cores"). A sum m 2^e, 1 <= m < 2, then loses half a unit in the last place on average, 2^-24 / m
// of itself. LOST is that loss of every sum, and so of their total, where m is distributed as
// leading digits are.
//
// That is a model: one exact sum and one rounding per instruction. Addends may be truncated, too,
// as they are aligned, to 24, 25 or 26 bits and 4 or 8 products at a time. For that simulation
// gives 0.4 to 0.9 in place of 0.72. No GPU has been measured.
template <bool SPLIT, class S>
struct Tf32 : S {
  using Element = float;
  using Acc = float;
  static constexpr int BLOCKS = SPLIT ? 1 : 2;
  static constexpr double LOST = SPLIT ? 0.72 * 0x1p-24 : 0;

  template <int COUNT>
  static __device__ void round(uint32_t (&high)[COUNT], uint32_t (&low)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const float x = as_float(high[i]);
      high[i] = to_tf32(x);
      if (SPLIT) low[i] = to_tf32(x - as_float(high[i]));
    }
  }

  static __device__ void product(float (&c0)[2], float (&c1)[2], const uint32_t (&a)[4],
                                 const uint32_t (&a_low)[4], const uint32_t (&b)[2],
                                 const uint32_t (&b_low)[2]) {
    if (!SPLIT) return mma_tf32(c0, c1, a, b[0], b[1]);
    float sum[2][2] = {};
    mma_tf32(sum[0], sum[1], a, b_low[0], b_low[1]);
    mma_tf32(sum[0], sum[1], a_low, b[0], b[1]);
    mma_tf32(sum[0], sum[1], a, b[0], b[1]);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      c0[e] += sum[0][e];
      c1[e] += sum[1][e];
    }
  }

  static __device__ void multiply(float (&s)[S::MB][S::NB][2], const unsigned char* a, int row,
                                  const unsigned char* b, int column) {
#pragma unroll(SPLIT ? 1 : 2)
    for (int step = 0; step < 2; ++step) {
      uint32_t fb[S::NB][2], fb_low[S::NB][2];
#pragma unroll
      for (int n = 0; n < S::NB / 2; ++n) {
        uint32_t two[4];
        load_b(two, b, column + 16 * n, step);
        fb[2 * n][0] = two[0], fb[2 * n][1] = two[1];
        fb[2 * n + 1][0] = two[2], fb[2 * n + 1][1] = two[3];
        round(fb[2 * n], fb_low[2 * n]);
        round(fb[2 * n + 1], fb_low[2 * n + 1]);
      }
#pragma unroll
      for (int m = 0; m < S::MB / 2; ++m) {
        uint32_t fa[4], fa_low[4];
        load_a(fa, a, row + 16 * m, step);
        round(fa, fa_low);
#pragma unroll
        for (int n = 0; n < S::NB; ++n)
          product(s[2 * m][n], s[2 * m + 1][n], fa, fa_low, fb[n], fb_low[n]);
        if (SPLIT) __syncwarp();  // No more products at once than there are registers.
      }
    }
  }

  // Contraction indices may be renamed. Slots k and k + 4 of the instruction are columns 2 k and 2
  // k + 1 of w, so that w needs no exchange.
  template <int NB, int DB>
  static __device__ void accumulate(float (&out)[2][DB][2], const float (&w)[2][NB][2],
                                    const unsigned char* v, int rows) {
    const int group = lane_id() >> 2, part = lane_id() & 3;
#pragma unroll
    for (int k = 0; k < NB; ++k) {
      uint32_t fa[4] = {__float_as_uint(w[0][k][0]), __float_as_uint(w[1][k][0]),
                        __float_as_uint(w[0][k][1]), __float_as_uint(w[1][k][1])};
      uint32_t fa_low[4];
      round(fa, fa_low);
#pragma unroll
      for (int d = 0; d < DB; ++d) {
        const unsigned char* chunk = v + d / 2 * rows * CHUNK;
        uint32_t fb[2], fb_low[2];
#pragma unroll
        for (int e = 0; e < 2; ++e)
          fb[e] = element<uint32_t>(chunk, 8 * k + 2 * part + e, d % 2 * 8 + group);
        round(fb, fb_low);
        product(out[0][d], out[1][d], fa, fa_low, fb, fb_low);
      }
    }
  }
};

// float32 with ordinary multiply-adds: exact float32. It is the faster float32-class choice where
// tensor cores run tf32 at the FMA rate (sm_86, sm_89, sm_120). 16 loads of 16 bytes feed 256 FMA.
template <class S>
struct Fma : S {
  using Element = float;
  using Acc = float;
  static constexpr int BLOCKS = 1;

  static __device__ void multiply(float (&s)[S::MB][S::NB][2], const unsigned char* a, int row,
                                  const unsigned char* b, int column) {
    row += lane_id() >> 2;
    column += 2 * (lane_id() & 3);
#pragma unroll
    for (int k = 0; k < 16; k += 4) {
      float4 y[S::NB][2];
#pragma unroll
      for (int n = 0; n < S::NB; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          y[n][e] = *reinterpret_cast<const float4*>(b + swizzled(column + 8 * n + e, k / 4));
        }
      }
#pragma unroll
      for (int m = 0; m < S::MB; ++m) {
        const float4 x = *reinterpret_cast<const float4*>(a + swizzled(row + 8 * m, k / 4));
#pragma unroll
        for (int n = 0; n < S::NB; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& c = s[m][n][e];
            c = fmaf(x.x, y[n][e].x, c);
            c = fmaf(x.y, y[n][e].y, c);
            c = fmaf(x.z, y[n][e].z, c);
            c = fmaf(x.w, y[n][e].w, c);
          }
        }
      }
    }
  }

  template <int NB, int DB>
  static __device__ void accumulate(float (&out)[2][DB][2], const float (&w)[2][NB][2],
                                    const unsigned char* v, int rows) {
    const int quad = lane_id() & 28, part = lane_id() & 3;
    for (int k = 0; k < NB; ++k) {
      float own[2][2] = {};
#pragma unroll
      for (int n = 0; n < NB; ++n) {  // Registers cannot be indexed by k.
        if (n == k)
          own[0][0] = w[0][n][0], own[0][1] = w[0][n][1], own[1][0] = w[1][n][0],
          own[1][1] = w[1][n][1];
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float w0 = shuffle(own[0][j & 1], quad + j / 2),
                    w1 = shuffle(own[1][j & 1], quad + j / 2);
#pragma unroll
        for (int d = 0; d < DB; ++d) {
          const unsigned char* chunk = v + d / 2 * rows * CHUNK;
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float y = element<float>(chunk, 8 * k + j, d % 2 * 8 + 2 * part + e);
            out[0][d][e] = fmaf(w0, y, out[0][d][e]);
            out[1][d][e] = fmaf(w1, y, out[1][d][e]);
          }
        }
      }
    }
  }
};

// float64 on tensor cores: one mma.m8n8k4 per 512 flops.
template <class S>
struct F64 : S {
  using Element = double;
  using Acc = double;
  static constexpr int BLOCKS = 1;

  static __device__ void multiply(double (&s)[S::MB][S::NB][2], const unsigned char* a, int row,
                                  const unsigned char* b, int column) {
    const int group = lane_id() >> 2, part = lane_id() & 3;
#pragma unroll
    for (int k = 0; k < 8; k += 4) {
      double fb[S::NB];
#pragma unroll
      for (int n = 0; n < S::NB; ++n) fb[n] = element<double>(b, column + 8 * n + group, k + part);
#pragma unroll
      for (int m = 0; m < S::MB; ++m) {
        const double fa = element<double>(a, row + 8 * m + group, k + part);
#pragma unroll
        for (int n = 0; n < S::NB; ++n) mma_f64(s[m][n], fa, fb[n]);
      }
    }
  }

  template <int NB, int DB>
  static __device__ void accumulate(double (&out)[2][DB][2], const double (&w)[2][NB][2],
                                    const unsigned char* v, int rows) {
    const int group = lane_id() >> 2, part = lane_id() & 3;
#pragma unroll
    for (int k = 0; k < NB; ++k) {
#pragma unroll
      for (int d = 0; d < DB; ++d) {
        const unsigned char* chunk = v + d * rows * CHUNK;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const double y = element<double>(chunk, 8 * k + 2 * part + e, group);
          mma_f64(out[0][d], w[0][k][e], y);
          mma_f64(out[1][d], w[1][k][e], y);
        }
      }
    }
  }
};

// The shapes that the library is made of. fused_rows wants whole rows in a warp: 16 rows each.
using Square = Shape<128, 128, 2, 4>;
using SmallSquare = Shape<64, 64, 4, 2>;
using Rows = Shape<128, 64, 8, 1>;
using SmallRows = Shape<64, 32, 4, 1>;

}  // namespace fused_contrastive
