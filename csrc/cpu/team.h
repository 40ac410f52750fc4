// Threads and the order of tiles. It never matters which thread runs a tile. Tiles that add to the
// same block do so in one fixed order, which a counter per block enforces. So results have the same
// bits for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

#include "problem.h"

namespace fused_contrastive::FUSED_ISA {

template <class U>
U* allocate(Runtime* runtime, int64_t n) {
  return static_cast<U*>(runtime->allocate(runtime, size_t(n) * sizeof(U)));
}

// Waits for a condition that another thread is about to make true.
template <class F>
void wait_until(F ready) {
  for (int spins = 0; !ready(); ++spins)
    if (spins > 2000) std::this_thread::yield();
}

// Counts how many tiles each block has served. wait() holds a tile back until its turn; earlier
// tiles are always running or done.
class Turns {
 public:
  explicit Turns(int64_t blocks)
      : blocks_(blocks), turn_(new std::atomic<int32_t>[size_t(blocks)]) {}
  void reset() {
    for (int64_t i = 0; i < blocks_; ++i) turn_[size_t(i)].store(0, std::memory_order_relaxed);
  }
  void wait(int64_t block, int64_t turn) const {
    wait_until([&] { return turn_[size_t(block)].load(std::memory_order_acquire) == turn; });
  }
  void done(int64_t block, int64_t turn) {
    turn_[size_t(block)].store(int32_t(turn) + 1, std::memory_order_release);
  }

 private:
  int64_t blocks_;
  std::unique_ptr<std::atomic<int32_t>[]> turn_;
};

// The threads of one pass. A pass is a sequence of phases, and each phase is a number of tasks. A
// thread that comes late finds them done, so that a pass waits for no thread that has not started a
// task.
class Team {
 public:
  Team(Runtime* runtime, int threads, int64_t scratch_bytes)
      : runtime_(runtime), threads_(threads) {
    stride_ = (scratch_bytes + 4095) / 4096 * 4096 + 256;
    scratch_ = allocate<char>(runtime, stride_ * threads);
  }

  class Worker {
   public:
    Worker(Team& team, int thread) : team_(team), thread_(thread) {}
    int thread() const { return thread_; }

    template <class U>
    U* scratch() const {
      return reinterpret_cast<U*>(team_.scratch_ + thread_ * team_.stride_);
    }

    // Runs the next phase: f(task) for 0 <= task < n, handed out in order. It returns when all are
    // done.
    template <class F>
    void tasks(int64_t n, F f) {
      Phase& phase = team_.phases_[phase_++];
      for (int64_t task; (task = phase.next.fetch_add(1, std::memory_order_relaxed)) < n;) {
        f(task);
        phase.done.fetch_add(1, std::memory_order_acq_rel);
      }
      wait_until([&] { return phase.done.load(std::memory_order_acquire) == n; });
    }

   private:
    Team& team_;
    int thread_, phase_ = 0;
  };

  // Calls f(worker) on every thread.
  template <class F>
  void run(F f) {
    for (Phase& phase : phases_) {
      phase.next.store(0, std::memory_order_relaxed);
      phase.done.store(0, std::memory_order_relaxed);
    }
    const auto body = [&](int thread) {
      Worker worker(*this, thread);
      f(worker);
    };
    if (threads_ == 1) return body(0);
    using Body = decltype(body);
    runtime_->parallel(
        runtime_, threads_, [](void* b, int thread) { (*static_cast<const Body*>(b))(thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  struct Phase {
    std::atomic<int64_t> next{0}, done{0};
  };
  static constexpr int MAX_PHASES = 12;

  Runtime* runtime_;
  int threads_;
  int64_t stride_;
  char* scratch_;
  Phase phases_[MAX_PHASES];
};
using Worker = Team::Worker;

struct Block {
  int64_t index, begin, end;
  bool first;  // whether this is the first tile to add to the block's sums
  int64_t size() const { return end - begin; }
};

// Visits every unordered pair of q blocks of n indices once: first the diagonal, then the rounds of
// a tournament. The pairs of a round are disjoint. f(I, J) may update both blocks.
template <class F>
void tournament(Worker& worker, Turns& turns, int64_t n, int64_t size, F f) {
  const int64_t q = (n + size - 1) / size, half = q / 2, odd = q % 2, ring = q - 1 + odd;
  const auto block = [&](int64_t i, int64_t turn) {
    return Block{i, i * size, std::min(n, (i + 1) * size), turn == 0};
  };
  worker.tasks(q + ring * half, [&](int64_t task) {
    if (task < q) {
      f(block(task, 0), block(task, 0));
      return turns.done(task, 0);
    }
    const int64_t round = (task - q) / half, k = (task - q) % half + odd;
    const int64_t i = k == 0 ? q - 1 : (round + k) % ring,
                  j = k == 0 ? round : (round - k + ring) % ring;
    const int64_t turn_i = 1 + round - (odd && round > i), turn_j = 1 + round - (odd && round > j);
    turns.wait(i, turn_i);
    turns.wait(j, turn_j);
    f(block(std::min(i, j), 1), block(std::max(i, j), 1));
    turns.done(i, turn_i);
    turns.done(j, turn_j);
  });
}

// Blocks of `size` rows by blocks of `size` columns. With few blocks on one side the other side is
// cut into `row_parts` or `column_parts` parts. Each part has its own sums for the side that is not
// cut.
struct Grid {
  int64_t M, N, size;
  bool rows, columns;  // which sums a tile adds to
  int64_t row_parts = 1, column_parts = 1;

  Grid(int64_t M, int64_t N, int64_t size, bool rows, bool columns)
      : M(M), N(N), size(size), rows(rows), columns(columns) {
    const int64_t p = row_blocks(), q = column_blocks();
    // Aims at TASKS independent tiles at a time, with at least two blocks to a part.
    const auto parts = [](int64_t few, int64_t many) {
      return std::max<int64_t>(1,
                               std::min((TASKS + few - 1) / few, many / std::max<int64_t>(2, few)));
    };
    if (rows && !(columns && q < p)) column_parts = parts(p, q);
    if (columns && !(rows && q >= p)) row_parts = parts(q, p);
  }
  int64_t row_blocks() const { return (M + size - 1) / size; }
  int64_t column_blocks() const { return (N + size - 1) / size; }

  // How many tiles can run at a time.
  int64_t width() const {
    if (!columns) return row_blocks() * column_parts;
    if (!rows) return column_blocks() * row_parts;
    return std::max<int64_t>(
        1, row_parts * column_parts *
               std::min(row_blocks() / row_parts, column_blocks() / column_parts));
  }

  static constexpr int64_t TASKS = 16;
};

// Calls f(I, J, row_part, column_part) for every tile. It may update I's sums of column part
// `column_part` and J's sums of row part `row_part`. With both sums the tiles of a part form a
// Latin square whose rounds are disjoint in rows and columns. With one sum a task is all the tiles
// of its block.
template <class F>
void grid_tiles(Worker& worker, Turns& row_turns, Turns& column_turns, const Grid& grid, F f) {
  const int64_t p = grid.row_blocks(), q = grid.column_blocks(), R = grid.row_parts,
                C = grid.column_parts;
  const auto begin = [](int64_t part, int64_t parts, int64_t blocks) {
    return part * blocks / parts;
  };
  const auto row = [&](int64_t i, bool first) {
    return Block{i, i * grid.size, std::min(grid.M, (i + 1) * grid.size), first};
  };
  const auto column = [&](int64_t j, bool first) {
    return Block{j, j * grid.size, std::min(grid.N, (j + 1) * grid.size), first};
  };
  if (!grid.columns) {
    worker.tasks(p * C, [&](int64_t task) {
      const int64_t c = task % C, j0 = begin(c, C, q);
      for (int64_t j = j0; j < begin(c + 1, C, q); ++j)
        f(row(task / C, j == j0), column(j, false), 0, c);
    });
    return;
  }
  if (!grid.rows) {
    worker.tasks(q * R, [&](int64_t task) {
      const int64_t r = task % R, i0 = begin(r, R, p);
      for (int64_t i = i0; i < begin(r + 1, R, p); ++i)
        f(row(i, false), column(task / R, i == i0), r, 0);
    });
    return;
  }
  // With both sums, part s has rows [i0, i0 + pi) and columns [j0, j0 + qj). In round k row x meets
  // column (x + k) % max.
  const int64_t parts = R * C;  // one of R and C is 1
  int64_t widest = 0, tallest = 0;
  for (int64_t s = 0; s < parts; ++s) {
    const int64_t pi = R > 1 ? begin(s + 1, R, p) - begin(s, R, p) : p;
    const int64_t qj = C > 1 ? begin(s + 1, C, q) - begin(s, C, q) : q;
    tallest = std::max(tallest, pi);
    widest = std::max(widest, std::max(pi, qj));
  }
  worker.tasks(widest * parts * tallest, [&](int64_t task) {
    const int64_t x = task % tallest, s = task / tallest % parts, k = task / tallest / parts;
    const int64_t r = R > 1 ? s : 0, c = C > 1 ? s : 0;
    const int64_t i0 = begin(r, R, p), pi = begin(r + 1, R, p) - i0, j0 = begin(c, C, q),
                  qj = begin(c + 1, C, q) - j0;
    const int64_t ring = std::max(pi, qj);
    if (x >= pi || k >= ring) return;
    const int64_t y = (x + k) % ring;
    if (y >= qj) return;
    // In how many of the rounds before k row x (column y) met a column (row) that exists. Of the
    // residues [from, to) modulo ring, those below count.
    const auto met = [&](int64_t from, int64_t to, int64_t count) {
      const int64_t wraps = to / ring - from / ring;
      return wraps * count + std::min(to % ring, count) - std::min(from % ring, count);
    };
    const int64_t turn_x = met(x, x + k, qj);
    const int64_t turn_y = met(y - k + ring + 1, y + ring + 1, pi);
    row_turns.wait((i0 + x) * C + c, turn_x);
    column_turns.wait((j0 + y) * R + r, turn_y);
    f(row(i0 + x, turn_x == 0), column(j0 + y, turn_y == 0), r, c);
    row_turns.done((i0 + x) * C + c, turn_x);
    column_turns.done((j0 + y) * R + r, turn_y);
  });
}

}  // namespace fused_contrastive::FUSED_ISA
