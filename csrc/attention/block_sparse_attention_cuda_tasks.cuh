// What the kernels of block_sparse_attention take.
#pragma once

#include "attention/attention_heads_cuda.cuh"
#include "attention/attention_scale.cuh"

namespace tokcore::attention {

struct ForwardTask {
  BlockSparseAttentionForwardParams params;  // q, k, v with aligned rows
  int columns;                               // of a row, whole chunks of 16 bytes
  ScoreScale scale;
};

// Rows of lse and delta of a head are padded to whole tiles.
inline constexpr int64_t kPaddedQueries = 64;

struct BackwardTask {
  BlockSparseAttentionBackwardParams params;  // q, k, v and grad_out with aligned rows
  int columns;                                // of a row, whole chunks of 16 bytes
  int64_t padded_rows;                        // M rounded up
  float* lse;                                 // [B, H, padded M] +inf where nothing counts
  float* delta;                               // [B, H, padded M] sum(grad_out out) - grad_lse
};

}  // namespace tokcore::attention
