// kv_saliency on CUDA: nothing waits for the GPU.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"
#include "tokcore/kv_cache/kv_saliency.h"

namespace tokcore {

size_t kv_saliency_workspace_cuda(const KvSaliencyParams& params);
void run_kv_saliency_cuda(const KvSaliencyParams& params, void* workspace, cuda::Stream stream);

}  // namespace tokcore
