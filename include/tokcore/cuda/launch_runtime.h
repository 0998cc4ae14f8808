// The half of launch.h that nvcc compiles.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "tokcore/cuda/launch.h"

namespace tokcore::cuda {

// More than this a kernel has to ask for.
inline constexpr size_t kSharedBytesWithoutRequest = 48 * 1024;

inline void check_launch(cudaError_t error, const LaunchConfig& config) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here; it must not surface again in somebody else's check
  throw std::runtime_error(std::string("tokcore: kernel ") + config.name + " could not be launched (grid " +
                           std::to_string(config.grid.x) + " x " + std::to_string(config.grid.y) + " x " +
                           std::to_string(config.grid.z) + ", " + std::to_string(config.threads) + " threads, " +
                           std::to_string(config.shared_bytes) + " bytes of shared memory, cluster " +
                           std::to_string(config.cluster) + "): " + cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error));
}

// Of the current device; 1 if it cannot be asked, which the launch that follows will report.
inline int current_multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 1;
}

// Enqueues Kernel(args...) on config.stream; an empty grid is no work. A launch that fails throws std::runtime_error.
template <auto Kernel, class... Args>
void launch(const LaunchConfig& config, const Args&... args) {
  if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
  if (config.shared_bytes > kSharedBytesWithoutRequest) {
    check_launch(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(Kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(config.shared_bytes)),
        config);
  }
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {config.cluster, 1, 1};
  cudaLaunchConfig_t runtime = {};
  runtime.gridDim = dim3(config.grid.x, config.grid.y, config.grid.z);
  runtime.blockDim = dim3(config.threads);
  runtime.dynamicSmemBytes = config.shared_bytes;
  runtime.stream = static_cast<cudaStream_t>(config.stream);
  runtime.attrs = &cluster;
  runtime.numAttrs = config.cluster > 1 ? 1 : 0;
  check_launch(cudaLaunchKernelEx(&runtime, Kernel, args...), config);
}

}  // namespace tokcore::cuda
