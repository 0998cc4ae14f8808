// draft_samples on CUDA: a block for each row, which is swept once for every token drawn.
#pragma once

#include "speculative/sampling_row.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/speculative/sampling_cuda.h"

namespace tokcore::speculative {

// Grid: a block for each row.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) draft_samples_kernel(const DraftSamplesParams params) {
  TOKCORE_SHARED_MEMORY(memory);
  const int64_t index = blockIdx.x;
  float* q = params.draft_probs == nullptr ? nullptr : params.draft_probs + index * params.vocab_size;
  int32_t status = check_settings(params, index);
  DeviceRow<T> row(params, nullptr, index, *reinterpret_cast<RowShared*>(memory));
  if (status == kFine) status = row.open(0, true).status;
  if (threadIdx.x == 0) {
    params.status[2 * index] = status;
    params.status[2 * index + 1] = 0;
  }
  if (status == kFine && q != nullptr) row.write_draft(q);
#pragma unroll 1
  for (int64_t v = threadIdx.x; status != kFine && q != nullptr && v < params.vocab_size; v += kRowThreads) q[v] = 0.0f;

  NoisyToken last;
#pragma unroll 1
  for (int64_t i = 0; i < params.k; ++i) {
    int64_t token = -1;
    if (status == kFine && (i == 0 || last.token >= 0)) {
      const bool iid = params.children == DraftChildren::kIid;
      const Stream stream = static_cast<Stream>(static_cast<int64_t>(Stream::kDrafts) + (iid ? i : 0));
      const NoisyToken before = iid ? NoisyToken{} : last;
      last = q == nullptr ? row.next_with_noise(before, params.positions[index])
                          : row.next_draft_with_noise(q, before, stream, params.positions[index]);
      token = last.token;
    }
    if (threadIdx.x != 0) continue;
    float share = 0.0f;
    if (token >= 0) {
      share =
          q != nullptr ? q[token] : static_cast<float>(as_double(row.weight(token)) / as_double(row.summary().mass));
    }
    params.tokens[index * params.k + i] = static_cast<int32_t>(token);
    params.probs[index * params.k + i] = share;
  }
}

template <class T>
void launch_draft_samples(const DraftSamplesParams& params, cuda::Stream stream) {
  cuda::LaunchConfig config = cuda::launch_over(params.num_requests, 1, kRowThreads, stream, "draft_samples_kernel");
  config.shared_bytes = sizeof(RowShared);
  cuda::launch<draft_samples_kernel<T>>(config, params);
}

}  // namespace tokcore::speculative

namespace tokcore {

void run_draft_samples_cuda(const DraftSamplesParams& params, cuda::Stream stream) {
  with_dtype(params.dtype, [&](auto element) { speculative::launch_draft_samples<decltype(element)>(params, stream); });
}

}  // namespace tokcore
