// Threads and memory for the kernels: those of torch, without its headers.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>

// The entry of OpenMP that torch's own loops call. The reference is weak and is resolved among the
// libraries that torch has made visible to the whole process. So it is the one that torch calls,
// and the kernels run on torch's threads. It is null where torch brings no such library.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*work)(void*), void* data,
                                                    unsigned threads, unsigned flags);
#endif

#include "arguments.h"
#include "problem.h"

namespace fused_contrastive {

// Asks for large pages for memory that is about to be written once, where the system grants them.
// Page faults would cost more than the copy.
inline void use_large_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + uintptr_t(bytes);
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (data && first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Runs kernels without Python's lock. Their memory is that of tensors, so that torch's profiler and
// its NaN fill see it: `memory(bytes)` makes one, which is handed out piece by piece.
class PythonRuntime : public Runtime {
 public:
  PythonRuntime(PyObject* memory, int threads)
      : Runtime{threads, &allocate_bytes, &run_parallel}, memory_(memory) {
    unlocked_ = PyEval_SaveThread();
  }
  ~PythonRuntime() {
    lock();
    for (PyObject* chunk : chunks_) Py_DECREF(chunk);
  }

 private:
  void lock() {
    if (unlocked_) PyEval_RestoreThread(std::exchange(unlocked_, nullptr));
  }

  void add_chunk(int64_t bytes) {
    lock();
    PyObject* chunk = PyObject_CallFunction(memory_, "L", static_cast<long long>(bytes));
    if (!chunk) throw PythonError();
    chunks_.push_back(chunk);
    PyObject* address = PyObject_CallMethod(chunk, "data_ptr", nullptr);
    if (!address) throw PythonError();
    next_ = static_cast<char*>(PyLong_AsVoidPtr(address));
    end_ = next_ + bytes;
    Py_DECREF(address);
    unlocked_ = PyEval_SaveThread();
    use_large_pages(next_, bytes);
  }

  static void* allocate_bytes(Runtime* runtime, size_t size) {
    auto& self = *static_cast<PythonRuntime*>(runtime);
    const int64_t bytes = int64_t(size + 63) / 64 * 64;
    if (bytes > self.end_ - self.next_) self.add_chunk(std::max(bytes, int64_t(1) << 19));
    return std::exchange(self.next_, self.next_ + bytes);
  }

  // Whichever thread comes next takes the next body, so that any number of threads will do.
  static void run_parallel(Runtime* runtime, int n, void (*body)(void*, int), void* context) {
    struct Bodies {
      int n;
      void (*body)(void*, int);
      void* context;
      std::atomic<int> next{0};
    } bodies{n, body, context};
    const auto work = [](void* data) {
      auto& b = *static_cast<Bodies*>(data);
      for (int i; (i = b.next.fetch_add(1, std::memory_order_relaxed)) < b.n;) b.body(b.context, i);
    };
#if defined(__linux__)
    // The team is always as large as torch's own, for OpenMP ends threads that a team does not
    // need.
    if (GOMP_parallel) return GOMP_parallel(work, &bodies, unsigned(runtime->threads), 0);
#endif
    std::vector<std::thread> others;
    for (int i = 1; i < n; ++i) others.emplace_back(work, &bodies);
    work(&bodies);
    for (std::thread& thread : others) thread.join();
  }

  PyObject* memory_;
  PyThreadState* unlocked_ = nullptr;
  std::vector<PyObject*> chunks_;
  char *next_ = nullptr, *end_ = nullptr;
};

}  // namespace fused_contrastive
