// What the bindings of the similarity and the sigmoid family share: checks, and views of tensors as
// the kernels' plain structures.
#pragma once

#include <limits>
#include <optional>
#include <string>

#include "torch_runtime.h"

namespace fused_contrastive {

using std::optional;

// The offset that stands for "no self" in fused_contrastive/problem.py.
constexpr int64_t NO_SELF = std::numeric_limits<int32_t>::min();

inline Kind kind_of(const std::string& kind) {
  if (kind == "all") return Kind::All;
  if (kind == "not_self") return Kind::NotSelf;
  if (kind == "not_pair") return Kind::NotPair;
  if (kind == "other_key") return Kind::OtherKey;
  TORCH_CHECK_VALUE(kind == "same_key", "unknown candidates ", kind);
  return Kind::SameKey;
}

// int32 keys that are equal exactly where the int64 keys are equal.
struct Keys {
  std::vector<int32_t> a, b;

  Keys(const optional<Tensor>& key_a, const optional<Tensor>& key_b, bool one_set) {
    if (!key_a) return;
    const Tensor x = key_a->contiguous(), y = one_set ? x : key_b->contiguous();
    const int64_t *p = x.const_data_ptr<int64_t>(), *q = y.const_data_ptr<int64_t>();
    const int64_t n = x.numel(), m = one_set ? 0 : y.numel();
    const auto small = [](int64_t k) { return k == int32_t(k); };
    std::vector<int64_t> values;
    if (!std::all_of(p, p + n, small) || !std::all_of(q, q + m, small)) {
      values.assign(p, p + n);
      values.insert(values.end(), q, q + m);
      std::sort(values.begin(), values.end());
    }
    const auto rank = [&](int64_t k) {
      return values.empty()
                 ? int32_t(k)
                 : int32_t(std::lower_bound(values.begin(), values.end(), k) - values.begin());
    };
    std::transform(p, p + n, std::back_inserter(a), rank);
    std::transform(q, q + m, std::back_inserter(b), rank);
    if (one_set) b = a;
  }
};

inline Set set_of(const Tensor& x, const Tensor& hat, const Tensor& inv, const Tensor& gradient) {
  return {x.const_data_ptr(), type_of(x.scalar_type()),
          x.stride(0),        x.stride(1),
          x.size(1),          data(hat),
          data(inv),          data(gradient)};
}

// Sets the fields that forward and backward share. The caller keeps `bias` alive.
inline void describe(Problem& p, const Tensor& a, const Tensor& scale, const Tensor& bias,
                     const Keys& keys, Kind kind, int64_t offset, int64_t stride, int64_t positive,
                     at::ScalarType dtype) {
  p.G = a.size(0);
  p.D = a.size(2);
  p.matrix = type_of(dtype);
  p.scale = scale.item<double>();
  p.bias = data(bias);
  p.kind = kind;
  p.offset = offset;
  p.stride = stride;
  p.positive = positive;
  p.key_a = keys.a.empty() ? nullptr : keys.a.data();
  p.key_b = keys.b.empty() ? nullptr : keys.b.data();
}

inline void check(const Tensor& a, const optional<Tensor>& b, bool bias, bool columns, Kind kind,
                  int64_t offset, int64_t stride, const optional<Tensor>& key_a,
                  const optional<Tensor>& key_b) {
  TORCH_CHECK(a.dim() == 3 && a.numel() > 0, "a must be [G, M, D] and not empty, got ", a.sizes());
  if (b) {
    TORCH_CHECK(
        b->dim() == 3 && b->numel() > 0 && b->size(0) == a.size(0) && b->size(2) == a.size(2),
        "b must be [G, N, D] and not empty with G and D of a ", a.sizes(), ", got ", b->sizes());
  } else {
    TORCH_CHECK(!columns && !bias && (offset == 0 || offset == NO_SELF),
                "one set must be symmetric");
  }
  TORCH_CHECK(kind != Kind::NotPair || stride > 0, "stride must be positive, got ", stride);
  const bool keyed = kind == Kind::OtherKey || kind == Kind::SameKey;
  TORCH_CHECK(keyed == key_a.has_value() && (!b || keyed == key_b.has_value()),
              "keys and kind do not agree");
}

using Outputs = std::vector<Tensor>;

// An output of the op, `[0]` when it is absent. No two outputs share memory.
inline Tensor output(const Tensor& like, bool present, at::IntArrayRef sizes, at::ScalarType type) {
  return present ? with_large_pages(at::empty(sizes, like.options().dtype(type)))
                 : at::empty({0}, like.options().dtype(type));
}

}  // namespace fused_contrastive
