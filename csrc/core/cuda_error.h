// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace tokcore::core {

inline std::string cuda_error_text(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

// `what` completes "tokcore: could not …".
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here; it must not surface again in somebody else's check
  throw std::runtime_error(std::string("tokcore: could not ") + what + ": " + cuda_error_text(error));
}

}  // namespace tokcore::core
