// Quantization of keys or values to 8, 4 or 2 bits, and back: common/quantization.h says what the numbers mean.
//
// Letters: M leading items (batch times heads), N tokens, D channels, C rows of channel scales (C divides M).
#pragma once

#include "tokcore/common/dtype.h"
#include "tokcore/common/quantization.h"
#include "tokcore/cpu/threads.h"

namespace tokcore {

struct KvCodesParams {
  QuantScheme scheme;
  int64_t num_items;           // M
  int64_t num_tokens;          // N, a multiple of the group with axis channel
  int64_t head_dim;            // D, a multiple of the group with axis token
  bool rotates;                // D is a power of two
  const float* channel_scale;  // [C, D] or null
  int64_t num_channel_scales;  // C
};

struct KvQuantizeParams : KvCodesParams {
  DType dtype;           // of x
  const void* x;         // [M, N, D]
  int64_t stride_item;   // elements
  int64_t stride_token;  // elements
  uint8_t* packed;       // [M, N, D * bits / 8] rows of codes
  BFloat16* scale;       // [M, N, D / group], or [M, N / group, D] with axis channel
  BFloat16* zero;        // as scale, or null: symmetric
};

struct KvDequantizeParams : KvCodesParams {
  const uint8_t* packed;  // as above
  const BFloat16* scale;
  const BFloat16* zero;
  DType dtype;  // of x
  void* x;      // [M, N, D] contiguous
};

void run_kv_quantize_cpu(const KvQuantizeParams& params, const cpu::Threads& threads);
void run_kv_dequantize_cpu(const KvDequantizeParams& params, const cpu::Threads& threads);

}  // namespace tokcore
