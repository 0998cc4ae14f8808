// What a launcher asks of a GPU, read once per device.
#pragma once

#include <cuda_runtime_api.h>

#include <deque>
#include <mutex>

#include "core/cuda_error.h"

namespace tokcore::core {

struct CudaDevice {
  int capability;  // 80, 86, 89, 90, 120
  int multiprocessors;
  size_t shared_block_bytes;  // most that one block may ask for
  size_t l2_bytes;
};

// The least capability that has a kernel in this library.
inline constexpr int kLeastCapability = 80;

inline CudaDevice read_cuda_device(int device) {
  const auto attribute = [device](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, device), "read a property of the GPU");
    return value;
  };
  return {
      .capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
      .multiprocessors = attribute(cudaDevAttrMultiProcessorCount),
      .shared_block_bytes = static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
      .l2_bytes = static_cast<size_t>(attribute(cudaDevAttrL2CacheSize))};
}

inline const CudaDevice& cuda_device(int device) {
  static std::mutex mutex;
  static std::deque<CudaDevice> devices;  // a deque: references stay valid while it grows
  const std::lock_guard lock(mutex);
  while (static_cast<int>(devices.size()) <= device) {
    devices.push_back(read_cuda_device(static_cast<int>(devices.size())));
  }
  return devices[static_cast<size_t>(device)];
}

inline std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

inline void require_capability(const char* op, int capability, int least = kLeastCapability) {
  if (capability >= least) return;
  throw std::runtime_error(std::string("tokcore.") + op + ": the GPU needs compute capability " +
                           capability_text(least) + " or newer, got " + capability_text(capability));
}

}  // namespace tokcore::core
