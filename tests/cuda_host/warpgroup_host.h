// The wrappers of csrc/cuda/warpgroup.cuh on the CPU. A descriptor is the address that it would
// hold. A thread computes its own sums of a product when it waits for the product, from what shared
// memory then holds. The fences and the register counts are not modelled.
#pragma once

namespace fused_contrastive {

inline void warpgroup_fence() {}
inline void warpgroup_commit() { shim::commit_products(); }
// A warp goes on as one.
template <int PENDING>
inline void warpgroup_wait() {
  shim::wait_for_products(PENDING);
  __syncwarp();
}
inline void warpgroup_settle(float (&)[2][32][2]) {}

template <int COUNT>
inline void fewer_registers() {}
template <int COUNT>
inline void more_registers() {}

inline uint64_t descriptor(const unsigned char* rows) {
  return reinterpret_cast<uint64_t>(rows) >> 4;
}

namespace detail {

// Row and element of an operand whose rows are 128 bytes apart. The 128-byte swizzle is a
// permutation of address bits.
template <class T>
float operand_element(uint64_t descriptor, int row, int k) {
  const uint64_t address =
      (descriptor << 4) + static_cast<uint64_t>(row) * 128 + static_cast<uint64_t>(k) * sizeof(T);
  return to_float(*reinterpret_cast<const T*>(address ^ (address >> 7 & 7) << 4));
}

}  // namespace detail

template <class T>
inline void warpgroup_mma(float (&s)[2][32][2], uint64_t a, uint64_t b, T) {
  constexpr int K = 32 / sizeof(T);
  const int lane = static_cast<int>(threadIdx.x) % 32,
            row = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;
  float(*sums)[32][2] = s;
  shim::issue_product([=] {
    float x[2][K];
    for (int m = 0; m < 2; ++m) {
      for (int k = 0; k < K; ++k) x[m][k] = detail::operand_element<T>(a, row + 8 * m, k);
    }
    for (int n = 0; n < 32; ++n) {
      for (int e = 0; e < 2; ++e) {
        double products[2] = {};
        for (int k = 0; k < K; ++k) {
          const double y = detail::operand_element<T>(b, 8 * n + 2 * (lane % 4) + e, k);
          for (int m = 0; m < 2; ++m) products[m] += x[m][k] * y;
        }
        for (int m = 0; m < 2; ++m) sums[m][n][e] = detail::added(sums[m][n][e], products[m]);
      }
    }
  });
}

}  // namespace fused_contrastive
