// decode_attention on CUDA. What the cache's tensors say is read on the device alone: nothing waits for the GPU, and
// everything can be captured into a graph.
//
// What the CPU would raise for cannot be reported without waiting. A length, count or window start out of range makes
// the outputs of its sequence NaN, a page number outside the pages those of every query that sees the page; neither is
// used as an address.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"
#include "tokcore/kv_cache/decode_attention.h"

namespace tokcore {

size_t decode_attention_workspace_cuda(const DecodeAttentionParams& params);
void run_decode_attention_cuda(const DecodeAttentionParams& params, void* workspace, cuda::Stream stream);

}  // namespace tokcore
