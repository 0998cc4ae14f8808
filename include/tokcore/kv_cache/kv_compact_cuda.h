// kv_compact on CUDA. What the tensors say is read on the device alone: nothing waits for the GPU.
//
// What the CPU would raise for cannot be reported without waiting. A verdict that is no path from the root of its tree,
// or a cache whose counts, pages or positions do not let its nodes be moved, is refused on the device as a whole: no
// layer and no sequence changes.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore {

struct KvCompactCudaParams {
  KvCacheParams cache;  // the first layer; advance_to_layer gives the others
  int64_t num_layers;
  const int32_t* nodes;     // [B, K]
  const int32_t* accepted;  // [B]
  const int32_t* parents;   // [B, N]
  const int32_t* counts;    // [B]
  int64_t most_accepted;    // K
  int64_t most_nodes;       // N
};

size_t kv_compact_workspace_cuda(const KvCompactCudaParams& params);
void run_kv_compact_cuda(const KvCompactCudaParams& params, void* workspace, cuda::Stream stream);

}  // namespace tokcore
