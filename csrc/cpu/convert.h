// Converts rows of any floating type to and from the accumulation type, rounding to nearest even.
#pragma once

#include "problem.h"
#include "vec.h"

namespace fused_contrastive::FUSED_ISA {

FUSED_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
FUSED_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

FUSED_INLINE float from_bfloat16(uint16_t h) { return float_of(uint32_t(h) << 16); }
FUSED_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  return x != x ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// A half's exponent moves by multiplication with 2^112 (down) or 2^-112 (up). That treats its
// subnormal numbers, too.
FUSED_INLINE float from_half(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = uint32_t(h & 0x7fff) << 13;
  const bool special = (h & 0x7c00) == 0x7c00;
  const float value = float_of(magnitude) * float_of(0x77800000);
  return float_of(sign | (special ? magnitude | 0x7f800000 : bits_of(value)));
}
FUSED_INLINE uint16_t to_half(float x) {
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffff;
  const uint16_t sign = uint16_t((u >> 16) & 0x8000);
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
  // Of a subnormal result the low bits of this sum are the rounded half.
  if (magnitude < 0x38800000)
    return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

template <class T>
constexpr Type TYPE = sizeof(T) == 8 ? Type::Double : Type::Float;

inline size_t size_of(Type type) { return type == Type::Double ? 8 : type == Type::Float ? 4 : 2; }

inline const void* offset_by(const void* p, Type type, int64_t elements) {
  return static_cast<const char*>(p) + elements * int64_t(size_of(type));
}
inline void* offset_by(void* p, Type type, int64_t elements) {
  return static_cast<char*>(p) + elements * int64_t(size_of(type));
}

template <class T>
void load_row(const void* p, Type type, int64_t n, T* out) {
  switch (type) {
    case Type::Float:
      std::copy_n(static_cast<const float*>(p), n, out);
      break;
    case Type::Double:
      for (int64_t i = 0; i < n; ++i) out[i] = T(static_cast<const double*>(p)[i]);
      break;
    case Type::BFloat16:
      for (int64_t i = 0; i < n; ++i) out[i] = from_bfloat16(static_cast<const uint16_t*>(p)[i]);
      break;
    case Type::Half:
      for (int64_t i = 0; i < n; ++i) out[i] = from_half(static_cast<const uint16_t*>(p)[i]);
      break;
  }
}

template <class T>
void store_row(const T* x, int64_t n, void* p, Type type) {
  switch (type) {
    case Type::Float:
      for (int64_t i = 0; i < n; ++i) static_cast<float*>(p)[i] = float(x[i]);
      break;
    case Type::Double:
      std::copy_n(x, n, static_cast<double*>(p));
      break;
    case Type::BFloat16:
      for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(p)[i] = to_bfloat16(float(x[i]));
      break;
    case Type::Half:
      for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(p)[i] = to_half(float(x[i]));
      break;
  }
}

// The row in T: where it lies, if T is its type, else converted into `buffer`.
template <class T>
const T* row_in(const void* p, Type type, int64_t n, T* buffer) {
  if (type == TYPE<T>) return static_cast<const T*>(p);
  load_row(p, type, n, buffer);
  return buffer;
}

}  // namespace fused_contrastive::FUSED_ISA
