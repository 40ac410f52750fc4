// What the files of operators share: the namespace and the device of the registration, tensors as
// pointers and sizes, and the stream. With FUSED_CONTRASTIVE_HOST the tests' host shim compiles the
// same operators for CPU tensors, in another namespace.
#pragma once

// A CPU-only torch lacks this function, and the library must still load there.
#pragma weak aoti_torch_get_current_cuda_stream

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "platform.cuh"

#ifdef FUSED_CONTRASTIVE_HOST
#define NAMESPACE fused_contrastive_cuda_host
#define DEVICE CPU
#else
#define NAMESPACE fused_contrastive_cuda
#define DEVICE CUDA
#endif

namespace fused_contrastive {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::headeronly::ScalarType;

// Makes the tensor's device current for the duration of a call, and gives its stream.
class Queue {
 public:
  explicit Queue(const Tensor& x)
#ifdef FUSED_CONTRASTIVE_HOST
  {
  }
  Stream stream() const { return nullptr; }
#else
      : index_(x.get_device_index()), guard_(index_) {
  }
  Stream stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<Stream>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// A tensor without elements counts as absent: its pointer is null.
inline void* pointer(const Tensor& x) { return x.numel() == 0 ? nullptr : x.data_ptr(); }
inline void* pointer(const OptionalTensor& x) { return x.has_value() ? pointer(*x) : nullptr; }

inline int size(const Tensor& x, int64_t dimension) {
  const int64_t n = x.size(dimension), most = int64_t(1) << (dimension == 2 ? 27 : 30);
  STD_TORCH_CHECK(n <= most, "the CUDA kernels take at most 2^30 rows and 2^27 features, got ", n);
  return static_cast<int>(n);
}

}  // namespace fused_contrastive
