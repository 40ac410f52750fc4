// The wrappers of csrc/cuda/instructions.cuh on the CPU. Instructions of a warp gather the
// fragments of its 32 lanes.
#pragma once

namespace fused_contrastive {

inline float to_float(bf16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31,
                 fraction = x.bits & 0x3ff;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(fraction) * 0x1p-24f;
  return bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }

inline void from_float(float x, bf16& y) {
  const uint32_t u = bits_as<uint32_t>(x);
  y.bits = x != x ? 0x7fff : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline void from_float(float x, f16& y) {
  uint32_t u = bits_as<uint32_t>(x);
  const uint32_t sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) {
    u = 0x7fff;
  } else if (u >= 0x477ff000) {  // rounds beyond the largest number
    u = 0x7c00;
  } else if (u < 0x38800000) {  // subnormal: the ulp of 0.5 is their spacing
    u = bits_as<uint32_t>(bits_as<float>(u) + 0.5f) - 0x3f000000;
  } else {
    u = (u + 0xc8000fffu + (u >> 13 & 1)) >> 13;
  }
  y.bits = static_cast<uint16_t>(sign | u);
}
inline void from_float(float x, float& y) { y = x; }
inline void from_float(float x, double& y) { y = x; }
inline void from_float(double x, double& y) { y = x; }
inline void from_float(double x, float& y) { y = static_cast<float>(x); }
inline void from_float(double x, bf16& y) { from_float(static_cast<float>(x), y); }
inline void from_float(double x, f16& y) { from_float(static_cast<float>(x), y); }

template <class T>
inline uint32_t pack(float low, float high, T) {
  T a, b;
  from_float(low, a);
  from_float(high, b);
  return a.bits | static_cast<uint32_t>(b.bits) << 16;
}

inline float exp_2(float x) { return exp2f(x); }
inline double exp_2(double x) { return exp2(x); }

inline float inverse_root(float x) { return 1.0f / sqrtf(x); }
inline double inverse_root(double x) { return 1.0 / sqrt(x); }

inline float rough_inverse(float x) { return 1.0f / x; }

inline uint32_t to_tf32(float x) {
  const uint32_t u = bits_as<uint32_t>(x);
  return (u & 0x7f800000) == 0x7f800000 ? u : (u + 0x1000) & ~0x1fffu;
}
inline float as_float(uint32_t x) { return bits_as<float>(x); }

namespace detail {

template <class Arguments>
void collective(Arguments& mine, void (*all)(void* const*)) {
  shim::collective(&mine, all);
}
template <class Arguments>
Arguments& of(void* const* lanes, int lane) {
  return *static_cast<Arguments*>(lanes[lane]);
}

template <class T>
struct Shuffle {
  T value, result;
  int source;
  static void all(void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      Shuffle& mine = of<Shuffle>(lanes, lane);
      mine.result = of<Shuffle>(lanes, mine.source).value;
    }
  }
};

template <bool TRANSPOSED>
struct Matrices {
  const void* row;
  uint32_t* out;
  static void all(void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint32_t& word = of<Matrices>(lanes, lane).out[matrix];
        auto row = [&](int r) {
          return static_cast<const uint16_t*>(of<Matrices>(lanes, matrix * 8 + r).row);
        };
        const int g = lane / 4, t = lane % 4;
        if (TRANSPOSED) {
          word = row(2 * t)[g] | static_cast<uint32_t>(row(2 * t + 1)[g]) << 16;
        } else {
          memcpy(&word, row(g) + 2 * t, 4);
        }
      }
    }
  }
};

// What tensor cores do with the products of one instruction: they add the exact sum to the
// accumulator with one rounding, toward zero.
inline float added(float accumulator, double products) {
  const double exact = accumulator + products;
  const float nearest = static_cast<float>(exact);
  return fabs(nearest) > fabs(exact) && !isinf(nearest) ? nextafterf(nearest, 0) : nearest;
}

// D += A B for 16 x K and K x 8. Each word of the fragments holds two elements (16-bit T) or one
// (tf32).
template <class T>
struct Mma {
  static constexpr int PER_WORD = sizeof(T) == 2 ? 2 : 1, K = 8 * PER_WORD;
  float *c0, *c1;
  const uint32_t* a;
  uint32_t b[2];

  static float part(uint32_t word, int e) {
    if constexpr (PER_WORD == 1) {
      return bits_as<float>(word & ~0x1fffu);  // The hardware ignores the low bits.
    } else {
      return to_float(T{static_cast<uint16_t>(word >> 16 * e)});
    }
  }
  static void all(void* const* lanes) {
    float a[16][K], b[K][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Mma& m = of<Mma>(lanes, lane);
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < PER_WORD; ++e) {
        const int k = PER_WORD * t + e;
        a[g][k] = part(m.a[0], e);
        a[g + 8][k] = part(m.a[1], e);
        a[g][k + K / 2] = part(m.a[2], e);
        a[g + 8][k + K / 2] = part(m.a[3], e);
        b[k][g] = part(m.b[0], e);
        b[k + K / 2][g] = part(m.b[1], e);
      }
    }
    double c[16][8] = {};
    for (int i = 0; i < 16; ++i) {
      for (int k = 0; k < K; ++k) {
        for (int j = 0; j < 8; ++j) c[i][j] += static_cast<double>(a[i][k]) * b[k][j];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      Mma& m = of<Mma>(lanes, lane);
      const int g = lane / 4, t = lane % 4;
      for (int e = 0; e < 2; ++e) {
        m.c0[e] = added(m.c0[e], c[g][2 * t + e]);
        m.c1[e] = added(m.c1[e], c[g + 8][2 * t + e]);
      }
    }
  }
};

struct MmaF64 {
  double* c;
  double a, b;
  static void all(void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int e = 0; e < 2; ++e) {
        for (int k = 0; k < 4; ++k) {
          of<MmaF64>(lanes, lane).c[e] += of<MmaF64>(lanes, lane / 4 * 4 + k).a *
                                          of<MmaF64>(lanes, (lane % 4 * 2 + e) * 4 + k).b;
        }
      }
    }
  }
};

}  // namespace detail

template <class T>
inline T shuffle(T x, int source) {
  detail::Shuffle<T> mine{x, x, source};
  detail::collective(mine, detail::Shuffle<T>::all);
  return mine.result;
}
template <class T>
inline T shuffle_xor(T x, int mask) {
  return shuffle(x, static_cast<int>(threadIdx.x % 32) ^ mask);
}

inline void atomic_raise(float* target, float x) {
  const int bits = bits_as<int>(fabsf(x));
  if (bits > bits_as<int>(*target)) *target = bits_as<float>(bits);
}

inline void copy_async(void* shared, const void* global, int valid) {
  shim::copy(shared, global, valid);
}
inline void copy_commit() { shim::commit_copies(); }
template <int PENDING>
inline void copy_wait() {
  shim::wait_for_copies(PENDING);
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  detail::Matrices<false> mine{row, r};
  detail::collective(mine, detail::Matrices<false>::all);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  detail::Matrices<true> mine{row, r};
  detail::collective(mine, detail::Matrices<true>::all);
}

template <class T>
inline void mma(float (&c0)[2], float (&c1)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                T) {
  detail::Mma<T> mine{c0, c1, a, {b0, b1}};
  detail::collective(mine, detail::Mma<T>::all);
}
inline void mma_tf32(float (&c0)[2], float (&c1)[2], const uint32_t (&a)[4], uint32_t b0,
                     uint32_t b1) {
  mma(c0, c1, a, b0, b1, float{});
}
inline void mma_f64(double (&c)[2], double a, double b) {
  detail::MmaF64 mine{c, a, b};
  detail::collective(mine, detail::MmaF64::all);
}

}  // namespace fused_contrastive
