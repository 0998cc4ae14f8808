// What the kernels of paro_attention take.
#pragma once

#include "attention/paro_order_cuda.cuh"

namespace tokcore::attention {

struct ParoTask {
  ParoAttentionParams params;       // 4-bit codes as bytes, fp8 as rows of bf16
  BlockSparseAttentionParams walk;  // lengths, and a mask that keeps what holds text
  ParoOrders orders;
  float factor;  // scale log2(e)
};

}  // namespace tokcore::attention
