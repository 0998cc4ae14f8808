// The status of a call on a GPU as an error, where the caller wants to wait for it.
#pragma once

#include <vector>

#include "core/cuda_scope.h"
#include "speculative/sampling_check.h"

namespace tokcore::speculative {

inline void raise_device_status(const Checker& check, const LogitsParams& params, const core::CudaScope& scope,
                                bool with_nodes) {
  if (params.num_requests == 0) return;
  std::vector<int32_t> status(static_cast<size_t>(2 * params.num_requests));
  const auto stream = static_cast<cudaStream_t>(scope.stream());
  core::check_cuda(
      cudaMemcpyAsync(status.data(), params.status, status.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream),
      "copy the status of a call");
  core::check_cuda(cudaStreamSynchronize(stream), "wait for the status of a call");
  raise_status(check, status.data(), params.num_requests, with_nodes);
}

}  // namespace tokcore::speculative
