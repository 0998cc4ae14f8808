// kv_append on CUDA. What the tensors say is read on the device alone: nothing waits for the GPU, and everything can be
// captured into a graph.
//
// What the CPU would raise for cannot be reported without waiting. An append with such slots, pages or channel scales
// is refused on the device as a whole: the cache stays as it was, its lengths too.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore {

struct KvAppendCudaParams {
  KvCacheParams cache;
  const void* k;  // [T, Hkv, D] of the cache's dtype
  const void* v;
  int64_t stride_k_token, stride_k_head;  // elements
  int64_t stride_v_token, stride_v_head;
  const int64_t* slots;  // [T] sequence * capacity + position, or -1
  int64_t num_tokens;    // T
  int64_t capacity;
  int64_t residual;
};

size_t kv_append_workspace_cuda(const KvAppendCudaParams& params);
void run_kv_append_cuda(const KvAppendCudaParams& params, void* workspace, cuda::Stream stream);

}  // namespace tokcore
