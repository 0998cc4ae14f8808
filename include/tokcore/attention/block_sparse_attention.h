// Attention over the kept blocks of a block mask, and its gradients.
//
// Letters: B batch, H query heads, Hkv key heads (H a multiple), M query length, N key length, D head size.
// z = scale q k^T in fp32; element (m, n) counts where the mask keeps its block and, with `causal`, n <= m + N - M.
// out = softmax(z) v over what counts; a row without any gives out = 0 and lse = -inf.
#pragma once

#include <cstdint>

#include "tokcore/attention/block_mask.h"
#include "tokcore/common/dtype.h"
#include "tokcore/cpu/threads.h"

namespace tokcore {

// A tensor [B, heads, rows, D] whose last dimension is dense.
struct HeadsView {
  const void* data;
  int64_t stride_batch;  // elements
  int64_t stride_head;   // elements
  int64_t stride_row;    // elements

  template <class T>
  const T* head(int64_t batch, int64_t index) const {
    return static_cast<const T*>(data) + batch * stride_batch + index * stride_head;
  }
};

struct AttentionShape {
  int64_t batch;         // B
  int64_t num_heads;     // H
  int64_t num_kv_heads;  // Hkv
  int64_t query_length;  // M
  int64_t key_length;    // N
  int64_t head_dim;      // D

  constexpr int64_t group_size() const { return num_heads / num_kv_heads; }
  // With `causal` row m sees the keys below m + 1 + causal_offset().
  constexpr int64_t causal_offset() const { return key_length - query_length; }
};

struct BlockSparseAttentionParams {
  DType dtype;  // of q, k, v and all that is shaped like them
  AttentionShape shape;
  HeadsView q;  // [B, H, M, D]
  HeadsView k;  // [B, Hkv, N, D]
  HeadsView v;  // [B, Hkv, N, D]
  BlockMaskView mask;
  float scale;  // > 0
  bool causal;
};

struct BlockSparseAttentionForwardParams : BlockSparseAttentionParams {
  void* out;   // [B, H, M, D] contiguous
  float* lse;  // [B, H, M] natural logarithm
};

struct BlockSparseAttentionBackwardParams : BlockSparseAttentionParams {
  HeadsView grad_out;     // [B, H, M, D]
  HeadsView out;          // [B, H, M, D]
  const float* lse;       // [B, H, M]
  const float* grad_lse;  // [B, H, M] or null
  void* grad_q;           // [B, H, M, D] contiguous, or null
  void* grad_k;           // [B, Hkv, N, D] contiguous, or null
  void* grad_v;           // [B, Hkv, N, D] contiguous, or null
};

void run_block_sparse_attention_forward_cpu(const BlockSparseAttentionForwardParams& params,
                                            const cpu::Threads& threads);
void run_block_sparse_attention_backward_cpu(const BlockSparseAttentionBackwardParams& params,
                                             const cpu::Threads& threads);

}  // namespace tokcore
