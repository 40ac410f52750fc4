// Warpgroup products of sm_90a and the loop that feeds them. One warpgroup gives its registers away
// and has one thread start tensor copies (TMA) into a ring of stages. Two warpgroups multiply and
// run the epilogues. The accumulator layout is that of products.cuh. Both operands come from shared
// memory, as nvcc 13.0's assembler mishandles register operands.
//
// A stage is 64 features of 128 rows and 256 columns, 48 KiB in the layout of the 128-byte swizzle.
// There are four stages, 192 KiB, and one block per SM. A stage takes 8 instructions of 2^19 flops,
// which are 1024 clk of an SM's tensor cores. Each byte read from L2 serves 85 flops. Its 5.5 TB/s
// then carry 470 TF/s where no two blocks read the same at once (128 x 128 tiles: 64 flops, 350
// TF/s).
//
// The exponentials of a tile take 2048 clk, its products 16 D. Up to D = 256 the warpgroups take
// turns and the longer of the two counts; beyond it both do. Predicted for pair_reduce, of 790
// TF/s: 380-480 at D = 128, 470-600 at 256, 430-560 at 512, 450-620 at 1024. pair_weight: the same
// less its stores, which bound a symmetric panel to 2.15e12 D flop/s: 200-270 at D = 128, 350-480
// at 256, 400-540 at 512, 450-600 at 1024.
#pragma once

#include "tensor_copy.cuh"
#include "tile_loop.cuh"
#include "warpgroup.cuh"

namespace fused_contrastive {

// bfloat16 or float16, 128 x 256 per block: two warpgroups (teams) of 64 rows each, with 128 sums
// per thread.
template <class T>
struct Warpgroup : Shape<128, 256, 8, 1> {
  using Element = T;
  using Acc = float;
  static constexpr int BLOCKS = 1, TEAM = 128, TEAM_ROWS = 64, PIECE = 64;
  // The bytes of a row in a stage, which is four instructions deep.
  static constexpr int WIDTH = 128;

  static __device__ int team() { return static_cast<int>(threadIdx.x) / TEAM; }
  static __device__ int team_row() { return team() * TEAM_ROWS; }
  static __device__ int team_thread() { return static_cast<int>(threadIdx.x) % TEAM; }
  static __device__ void sync() { named_barrier(1 + team(), TEAM); }
  static __device__ void sync_all() { named_barrier(3, THREADS); }

  // s += a b^T over one stage. Returns when the products before these are done.
  static __device__ void multiply(float (&s)[2][32][2], const unsigned char* a,
                                  const unsigned char* b) {
    const uint64_t rows = descriptor(a + team_row() * WIDTH), columns = descriptor(b);
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < WIDTH / 32; ++step)
      warpgroup_mma(s, rows + 2 * step, columns + 2 * step, T{});
    warpgroup_commit();
    warpgroup_wait<1>();
  }

  static __device__ void finish(float (&s)[2][32][2]) {
    warpgroup_wait<0>();
    warpgroup_settle(s);
  }
};

// Tensor maps of both operands. x and y start at a multiple of 16 bytes, and so does every row.
// Where a tile is at most STAGES deep, the warpgroups take turns, so that one multiplies while the
// other has its epilogue.
template <class T, int STAGES>
struct PairLoop<Warpgroup<T>, STAGES> {
  using P = Warpgroup<T>;
  static constexpr int THREADS = P::THREADS + 128;
  static constexpr bool PERSISTENT = true;
  static constexpr int COLUMNS = P::BN * P::WIDTH, STAGE = COLUMNS + P::BM * P::WIDTH;
  // The barriers lie behind the stages.
  static constexpr int SHARED = STAGES * STAGE + 128;
  static_assert(2 * (STAGES + 1) * sizeof(Barrier) <= 128, "room for the barriers");

  struct Sources {
    TensorMap x, y;
    explicit Sources(const Problem& p)
        : x(tensor_map<T>(p.x, p.G, p.M, p.D, P::BM)),
          y(tensor_map<T>(p.y, p.G, p.N, p.D, P::BN)) {}
  };

  template <class Tiles, class Epilogue>
  static __device__ void run(const Sources& sources, const Problem& p, Tiles tiles,
                             Epilogue& epilogue, unsigned char* shared) {
    Barrier* full = reinterpret_cast<Barrier*>(shared + STAGES * STAGE);
    Barrier *empty = full + STAGES, *turn = empty + STAGES;
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < STAGES; ++stage) {
        barrier_init(full + stage, 1);
        barrier_init(empty + stage, P::THREADS / 32);
      }
      for (int team = 0; team < 2; ++team) barrier_init(turn + team, P::TEAM / 32);
      barriers_ready();
    }
    __syncthreads();
    const int steps = ceil_div(p.D * static_cast<int>(sizeof(T)), P::WIDTH);
    int stage = 0;
    uint32_t parity = 0;
    auto advance = [&] {
      if (++stage < STAGES) return;
      stage = 0;
      parity ^= 1;
    };

    if (threadIdx.x >= P::THREADS) {
      fewer_registers<24>();
      if (threadIdx.x > P::THREADS) return;
      for (; tiles.valid(); tiles.next()) {
        for (int step = 0; step < steps; ++step, advance()) {
          const int feature = step * (P::WIDTH / static_cast<int>(sizeof(T)));
          unsigned char* target = shared + stage * STAGE;
          barrier_wait(empty + stage, parity ^ 1);
          barrier_arrive_and_expect(full + stage, STAGE);
          tensor_copy(target, sources.y, feature, tiles.j, tiles.g, full + stage);
          tensor_copy(target + COLUMNS, sources.x, feature, tiles.i, tiles.g, full + stage);
        }
      }
      return;
    }
    more_registers<240>();
    const bool in_turn = steps <= STAGES;
    const int team = P::team();
    auto arrive = [](Barrier* barrier) {
      if (lane_id() == 0) barrier_arrive(barrier);
    };
    for (uint32_t turns = 0; tiles.valid(); tiles.next(), ++turns) {
      float s[2][32][2] = {};
      int read = 0;
      if (in_turn)
        barrier_wait(turn + team, (turns + team + 1) & 1);  // The first team need not wait.
      for (int step = 0; step < steps; ++step, advance()) {
        const unsigned char* current = shared + stage * STAGE;
        barrier_wait(full + stage, parity);
        P::multiply(s, current + COLUMNS, current);
        if (step > 0) arrive(empty + read);
        read = stage;
      }
      if (in_turn) arrive(turn + (team ^ 1));
      P::finish(s);
      arrive(empty + read);
      epilogue(s, tiles, nullptr);
    }
  }
};

}  // namespace fused_contrastive
