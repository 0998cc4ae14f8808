// sample on CUDA: a block for each row.
#pragma once

#include "speculative/sampling_row.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/speculative/sampling_cuda.h"

namespace tokcore::speculative {

// Grid: a block for each request.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) sample_kernel(const SampleParams params) {
  TOKCORE_SHARED_MEMORY(memory);
  const int64_t request = blockIdx.x;
  int32_t status = check_settings(params, request);
  int64_t token = -1;
  float logprob = NAN, entropy = NAN, varentropy = NAN;
  if (status == kFine) {
    DeviceRow<T> row(params, nullptr, request, *reinterpret_cast<RowShared*>(memory));
    const RowSummary& summary = row.open(0, true);
    status = summary.status;
    if (status == kFine) {
      token = row.coupled_token(params.positions[request]);
      const double y = row.is_greedy() ? 0.0 : log2_weight(row.logit(token), summary.greatest, summary.slope);
      logprob = logprob_of(summary, y, row.weight_bits());
      entropy = static_cast<float>(entropy_of(summary, row.weight_bits()));
      varentropy = static_cast<float>(varentropy_of(summary));
    }
  }
  if (threadIdx.x != 0) return;
  params.tokens[request] = token;
  params.logprobs[request] = logprob;
  if (params.wants_entropy) {
    params.entropies[request] = entropy;
    params.varentropies[request] = varentropy;
  }
  params.status[2 * request] = status;
  params.status[2 * request + 1] = 0;
}

template <class T>
void launch_sample(const SampleParams& params, cuda::Stream stream) {
  cuda::LaunchConfig config = cuda::launch_over(params.num_requests, 1, kRowThreads, stream, "sample_kernel");
  config.shared_bytes = sizeof(RowShared);
  cuda::launch<sample_kernel<T>>(config, params);
}

}  // namespace tokcore::speculative

namespace tokcore {

void run_sample_cuda(const SampleParams& params, cuda::Stream stream) {
  with_dtype(params.dtype, [&](auto element) { speculative::launch_sample<decltype(element)>(params, stream); });
}

}  // namespace tokcore
