// The wrappers of csrc/cuda/tensor_copy.cuh on the CPU.
#pragma once

namespace fused_contrastive {

using Barrier = uint64_t;

struct TensorMap {
  const unsigned char* data;
  int64_t G, count, row_bytes;
  int rows;
};

template <class T>
inline TensorMap tensor_map(const void* x, int G, int count, int D, int rows) {
  const int64_t row_bytes = static_cast<int64_t>(D) * sizeof(T);
  if (reinterpret_cast<uintptr_t>(x) % 16 != 0 || row_bytes % 16 != 0 || rows > 256) {
    throw std::runtime_error("a tensor map: 16-byte alignment, boxes of at most 256 rows");
  }
  return {static_cast<const unsigned char*>(x), G, count, row_bytes, rows};
}

// The 128-byte swizzle is a permutation of address bits.
inline void tensor_copy(void* shared, const TensorMap& map, int feature, int row, int group,
                        Barrier* landed) {
  unsigned char* target = static_cast<unsigned char*>(shared);
  const int64_t byte = int64_t(2) * feature;
  shim::tensor_copy(target, map.rows * 128, landed, [=, &map] {
    for (int64_t place = 0; place < map.rows * 128; place += 16) {
      const int64_t r = row + place / 128, begin = byte + place % 128;
      const bool inside = r < map.count && begin < map.row_bytes && group < map.G;
      const uintptr_t address = reinterpret_cast<uintptr_t>(target) + place;
      void* to = reinterpret_cast<void*>(address ^ (address >> 7 & 7) << 4);
      if (inside) {
        memcpy(to, map.data + (group * map.count + r) * map.row_bytes + begin, 16);
      } else {
        memset(to, 0, 16);
      }
    }
  });
}

inline void barrier_init(Barrier* barrier, int arrivals) { shim::barrier_init(barrier, arrivals); }
inline void barriers_ready() {}
inline void barrier_arrive(Barrier* barrier) { shim::barrier_arrive(barrier, 0); }
inline void barrier_arrive_and_expect(Barrier* barrier, int bytes) {
  shim::barrier_arrive(barrier, bytes);
}
inline void barrier_wait(Barrier* barrier, uint32_t parity) { shim::barrier_wait(barrier, parity); }

inline void named_barrier(int barrier, int threads) { shim::named_barrier(barrier, threads); }

}  // namespace fused_contrastive
