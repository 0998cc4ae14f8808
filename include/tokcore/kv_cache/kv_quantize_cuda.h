// kv_quantize and kv_dequantize on CUDA. The same bits as on the CPU; nothing waits for the GPU.
//
// A channel scale that is not finite and positive cannot be reported without waiting: numbers divided by it become NaN,
// and so does what comes back of their groups.
#pragma once

#include "tokcore/cuda/stream.h"
#include "tokcore/kv_cache/kv_quantize.h"

namespace tokcore {

// A row lies in a block's shared memory.
inline constexpr int64_t kMostQuantizedChannelsCuda = 4096;

void run_kv_quantize_cuda(const KvQuantizeParams& params, cuda::Stream stream);
void run_kv_dequantize_cuda(const KvDequantizeParams& params, cuda::Stream stream);

}  // namespace tokcore
