// The GPU that an op runs on: its device made current, torch's current stream of it, and workspace from torch's
// allocator.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include "core/cuda_device.h"
#include "core/tensors.h"
#include "tokcore/cuda/machine.h"

namespace tokcore::core {

class CudaScope {
 public:
  // `tensor` is a CUDA tensor: any argument of the op.
  CudaScope(const char* op, const Tensor& tensor)
      : index_(tensor.get_device_index()), guard_(index_), device_(cuda_device(index_)) {
    require_capability(op, device_.capability);
    check_cuda(cudaSetDevice(index_), "make a GPU current");  // this library has a runtime of its own beside torch's
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream_));
  }

  cuda::Stream stream() const { return stream_; }
  const CudaDevice& device() const { return device_; }
  CudaMachine machine() const {
    return {device_.capability, device_.multiprocessors, static_cast<int64_t>(device_.l2_bytes)};
  }
  int capability() const { return device_.capability; }
  int multiprocessors() const { return device_.multiprocessors; }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  const CudaDevice& device_;
  cuda::Stream stream_ = nullptr;
};

// Bytes that hold nothing yet; torch's allocator aligns them to 512 and keeps them until the stream is done with them.
inline Tensor workspace_like(const Tensor& tensor, size_t bytes) {
  return torch::stable::new_empty(tensor, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

}  // namespace tokcore::core
