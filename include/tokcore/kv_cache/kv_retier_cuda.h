// kv_retier on CUDA. What the tensors say is read on the device alone: nothing waits for the GPU.
//
// What the CPU would raise for cannot be reported without waiting. A cache whose counts, pages, positions or channel
// scales are not as kv_append left them, or numbers of pages that do not fit, are refused on the device as a whole: the
// layer stays as it was, its page counts too.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"
#include "tokcore/kv_cache/kv_retier.h"

namespace tokcore {

size_t kv_retier_workspace_cuda(const KvRetierParams& params);
void run_kv_retier_cuda(const KvRetierParams& params, void* workspace, cuda::Stream stream);

}  // namespace tokcore
