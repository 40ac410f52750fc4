#include "shim.h"

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace shim {
namespace {

constexpr size_t STACK = 128 * 1024, GUARD = 256;
constexpr unsigned char POISON = 0xff;  // NaN in every type

enum Order { FORWARD = 0, BACKWARD = 1, ALTERNATING = 2, FIRST_WARPS = 3, LAST_WARPS = 4 };
int order = FORWARD;
bool copies_at_once = false, products_at_once = false;
int capability = 8;

struct Copy {
  void* target;
  const void* source;
  int valid;
};

struct Fiber {
#ifdef __x86_64__
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  unsigned thread;
  bool done;
  const unsigned* awaited;  // The fiber runs on once *awaited differs from `seen`.
  unsigned seen;
  // The committed groups, then the open one; the same holds for the products.
  std::vector<std::vector<Copy>> groups;
  std::vector<std::vector<std::function<void()>>> products;
};

struct Phases {
  int count, missing;  // arrivals of a phase
  int64_t bytes;       // announced, but not landed
  unsigned ended;
};

struct TensorCopy {
  std::function<void()> copy;
  Phases* landed;
  int bytes;
};

struct NamedBarrier {
  int threads, arrived;
  unsigned generation;
};

struct Warp {
  unsigned arrived, generation;
  void (*all)(void* const*);
  void* lanes[32];
};

struct Block {
  unsigned index, count;
  size_t shared_size;
  std::map<uint64_t*, Phases> barriers;
  std::vector<TensorCopy> copies;
  NamedBarrier named[16];
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> stacks, shared;
  unsigned alive, arrived, generation;
  const std::function<void()>* thread;
  std::string error;
} block;
Fiber* current = nullptr;

#ifdef __x86_64__
void* scheduler_stack_pointer;
extern "C" void shim_switch(void** save, void* next);
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch, @function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shim_switch, .-shim_switch
)");
void leave() { shim_switch(&current->stack_pointer, scheduler_stack_pointer); }
void enter(Fiber& fiber) {
  current = &fiber;
  shim_switch(&scheduler_stack_pointer, fiber.stack_pointer);
}
#else
ucontext_t scheduler;
void leave() { swapcontext(&current->context, &scheduler); }
void enter(Fiber& fiber) {
  current = &fiber;
  swapcontext(&scheduler, &fiber.context);
}
#endif

void release_barrier_if_complete() {
  if (block.arrived == block.alive && block.alive > 0) {
    block.arrived = 0;
    ++block.generation;
  }
}

void body() {
  (*block.thread)();
  current->done = true;
  --block.alive;
  release_barrier_if_complete();
  leave();
}

void start(Fiber& fiber, unsigned char* stack) {
#ifdef __x86_64__
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15);
  void** words = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, an alignment word
  memset(words, 0, 8 * sizeof(void*));
  words[6] = reinterpret_cast<void*>(body);
  fiber.stack_pointer = words;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = STACK;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, body, 0);
#endif
}

void wait(const unsigned& generation) {
  current->awaited = &generation;
  current->seen = generation;
  leave();
}

void fail(const std::string& message) {
  block.error = message;
  leave();  // for good: the scheduler throws
}

void perform(const Copy& copy) {
  memset(copy.target, 0, 16);
  memcpy(copy.target, copy.source, copy.valid);
}

void perform(const std::function<void()>& share) { share(); }

// Finishes the committed groups but the last `pending`, the open one apart.
template <class T>
void perform_all_but(std::vector<std::vector<T>>& groups, int pending) {
  while (groups.size() > static_cast<size_t>(pending) + 1) {
    for (const T& item : groups.front()) perform(item);
    groups.erase(groups.begin());
  }
}

void end_phase_if_complete(Phases& phases) {
  if (phases.missing > 0 || phases.bytes != 0) return;
  phases.missing = phases.count;
  ++phases.ended;
}

void land(const TensorCopy& copy) {
  copy.copy();
  copy.landed->bytes -= copy.bytes;
  end_phase_if_complete(*copy.landed);
}

bool land_one(bool newest) {
  if (block.copies.empty()) return false;
  const auto chosen = newest ? block.copies.end() - 1 : block.copies.begin();
  const TensorCopy copy = *chosen;
  block.copies.erase(chosen);
  land(copy);
  return true;
}

// What shared memory holds in place of a barrier.
constexpr uint64_t INITIALISED = 0x6d62617272696572;

Phases& phases(uint64_t* barrier) {
  const auto found = block.barriers.find(barrier);
  if (found == block.barriers.end() || *barrier != INITIALISED)
    fail("not a barrier, or overwritten");
  return found->second;
}

// Lets every thread run to where it waits, warp by warp. `eager` ends with the first warp in which
// one could run. Returns whether any ran.
bool run_warps(size_t warps, bool reverse, bool eager) {
  bool progress = false;
  for (size_t w = 0; w < warps && !(eager && progress); ++w) {
    for (size_t n = 0; n < 32; ++n) {
      const size_t place = 32 * w + n;
      Fiber& fiber = block.fibers[reverse ? 32 * warps - 1 - place : place];
      if (fiber.done || (fiber.awaited != nullptr && *fiber.awaited == fiber.seen)) continue;
      fiber.awaited = nullptr;
      progress = true;
      enter(fiber);
      if (!block.error.empty()) throw std::runtime_error(block.error);
    }
  }
  return progress;
}

void run_block(int threads) {
  const bool eager = order == FIRST_WARPS || order == LAST_WARPS;
  bool reverse = order == BACKWARD || order == LAST_WARPS;
  for (; block.alive > 0; reverse = order == ALTERNATING ? !reverse : reverse) {
    if (!run_warps(static_cast<size_t>(threads) / 32, reverse, eager) && !land_one(reverse)) {
      throw std::runtime_error("deadlock: threads of a block wait for different things");
    }
  }
}

}  // namespace

Index thread_index() { return {current->thread}; }
Index block_index() { return {block.index}; }
Index grid_size() { return {block.count}; }
unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(
      (reinterpret_cast<uintptr_t>(block.shared.data()) + 1023) & ~uintptr_t(1023));
}

void barrier() {
  ++block.arrived;
  const unsigned before = block.generation;
  release_barrier_if_complete();
  if (block.generation == before) wait(block.generation);
}

void collective(void* arguments, void (*all)(void* const*)) {
  Warp& warp = block.warps[current->thread / 32];
  if (warp.arrived == 0) warp.all = all;
  if (warp.all != all) fail("the lanes of a warp are at different instructions");
  warp.lanes[current->thread % 32] = arguments;
  if (++warp.arrived < 32) {
    wait(warp.generation);
    return;
  }
  all(warp.lanes);
  warp.arrived = 0;
  ++warp.generation;
}

void copy(void* target, const void* source, int valid) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source);
  if (bits % 16 != 0 || valid < 0 || valid > 16)
    fail("asynchronous copy: 16-byte alignment, 0 to 16 valid bytes");
  if (copies_at_once) return perform(Copy{target, source, valid});
  current->groups.back().push_back({target, source, valid});
}

void commit_copies() { current->groups.emplace_back(); }

void wait_for_copies(int pending) { perform_all_but(current->groups, pending); }

void issue_product(const std::function<void()>& share) {
  if (products_at_once) return share();
  current->products.back().push_back(share);
}

void commit_products() { current->products.emplace_back(); }

void wait_for_products(int pending) { perform_all_but(current->products, pending); }

void barrier_init(uint64_t* barrier, int arrivals) {
  *barrier = INITIALISED;
  block.barriers[barrier] = {arrivals, arrivals, 0, 0};
}

void barrier_arrive(uint64_t* barrier, int bytes) {
  Phases& mine = phases(barrier);
  if (mine.missing == 0) fail("more arrivals at a barrier than it counts");
  mine.bytes += bytes;
  --mine.missing;
  end_phase_if_complete(mine);
}

void barrier_wait(uint64_t* barrier, uint32_t parity) {
  const Phases& mine = phases(barrier);
  while ((mine.ended & 1) == parity) wait(mine.ended);
}

void tensor_copy(unsigned char* target, int bytes, uint64_t* landed,
                 const std::function<void()>& copy) {
  const unsigned char* begin = shared_memory();
  if ((target - begin) % 1024 != 0 || target < begin ||
      target + bytes > begin + block.shared_size) {
    fail("tensor copy: outside of shared memory, or not 1024-byte aligned");
  }
  block.copies.push_back({copy, &phases(landed), bytes});
  if (copies_at_once) land_one(true);
}

void named_barrier(int id, int threads) {
  NamedBarrier& mine = block.named[id];
  if (mine.arrived > 0 && mine.threads != threads) fail("threads at one barrier count differently");
  mine.threads = threads;
  if (++mine.arrived < threads) return wait(mine.generation);
  mine.arrived = 0;
  ++mine.generation;
}

int capability_major() { return capability; }

void run_blocks(int64_t blocks, int threads, int shared, const std::function<void()>& thread) {
  if (threads % 32 != 0 || threads > 1024)
    throw std::runtime_error("a block is 1 to 32 whole warps");
  if (shared > (capability == 9 ? 227 : 99) * 1024) {
    throw std::runtime_error("more shared memory than sm_86, or sm_90 as a whole, has: " +
                             std::to_string(shared));
  }
  const size_t count = static_cast<size_t>(threads);
  block.thread = &thread;
  block.error.clear();
  block.stacks.resize(std::max(block.stacks.size(), count * STACK));
  block.count = static_cast<unsigned>(blocks);
  block.shared_size = static_cast<size_t>(shared);
  for (int64_t b = 0; b < blocks; ++b) {
    block.index = static_cast<unsigned>(b);
    block.barriers.clear();
    block.copies.clear();
    std::fill(std::begin(block.named), std::end(block.named), NamedBarrier{});
    block.shared.assign(static_cast<size_t>(shared) + GUARD + 1024, POISON);
    block.fibers.resize(count);
    block.warps.assign(count / 32, Warp{});
    block.alive = static_cast<unsigned>(threads);
    block.arrived = 0;
    for (size_t n = 0; n < count; ++n) {
      Fiber& fiber = block.fibers[n];
      fiber.thread = static_cast<unsigned>(n);
      fiber.done = false;
      fiber.awaited = nullptr;
      fiber.groups.assign(1, {});
      fiber.products.assign(1, {});
      start(fiber, block.stacks.data() + n * STACK);
    }
    run_block(threads);
    if (!block.copies.empty())
      throw std::runtime_error("a tensor copy was under way when its block ended");
    const unsigned char* end = shared_memory() + shared;
    if (std::any_of(end, end + GUARD, [](unsigned char c) { return c != POISON; })) {
      throw std::runtime_error("a kernel wrote past the end of its shared memory");
    }
  }
}

}  // namespace shim

// Chooses how the next kernels run. `order` is the order of threads between barriers: 0 forward, 1
// backward, 2 alternating, 3 the first warps as far ahead of the others as they come, 4 the last
// ones.
// The flags say whether asynchronous copies and warpgroup products happen when issued rather than
// when waited for. Tensor copies otherwise happen when no thread can run without one: the oldest
// first, backward the newest, else in turns.
extern "C" __attribute__((visibility("default"))) void shim_options(int new_order,
                                                                    int new_copies_at_once,
                                                                    int new_products_at_once) {
  shim::order = new_order;
  shim::copies_at_once = new_copies_at_once != 0;
  shim::products_at_once = new_products_at_once != 0;
}

// Sets the major compute capability that the library sees: 9 has warpgroup products.
extern "C" __attribute__((visibility("default"))) void shim_capability(int major) {
  shim::capability = major;
}
