// What `tokcore info` and `make gpu-check` ask of this machine's GPUs.
#include <torch/csrc/stable/library.h>

#include <sstream>

#include "core/cuda_device.h"

namespace tokcore {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Which of the library's kernels a GPU runs.
const char* kernels_of(int capability) {
  if (capability < core::kLeastCapability) return "none";
  return capability == 90 ? "sm_90a" : "sm_80";
}

std::string describe(int index) {
  cudaDeviceProp properties = {};
  core::check_cuda(cudaGetDeviceProperties(&properties, index), "read the properties of a GPU");
  const core::CudaDevice& device = core::cuda_device(index);
  std::ostringstream text;
  text << "name=" << properties.name << "; capability=" << core::capability_text(device.capability)
       << "; kernels=" << kernels_of(device.capability) << "; multiprocessors=" << device.multiprocessors
       << "; memory_bytes=" << properties.totalGlobalMem << "; shared_block_bytes=" << device.shared_block_bytes
       << "; l2_bytes=" << device.l2_bytes;
  return text.str();
}

std::vector<std::string> cuda_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return {};
  }
  core::check_cuda(error, "count the GPUs");
  std::vector<std::string> devices;
  for (int index = 0; index < count; ++index) devices.push_back(describe(index));
  return devices;
}

std::vector<std::string> cuda_versions() {
  int runtime = 0, driver = 0;
  core::check_cuda(cudaRuntimeGetVersion(&runtime), "read the version of the CUDA runtime");
  core::check_cuda(cudaDriverGetVersion(&driver), "read the version of the CUDA driver");
  return {"runtime=" + version_text(runtime), "driver=" + (driver == 0 ? "none" : version_text(driver))};
}

}  // namespace
}  // namespace tokcore

STABLE_TORCH_LIBRARY_IMPL(tokcore, CompositeExplicitAutograd, m) {
  m.impl("cuda_devices", TORCH_BOX(&tokcore::cuda_devices));
  m.impl("cuda_versions", TORCH_BOX(&tokcore::cuda_versions));
}
