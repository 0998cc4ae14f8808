// Statistics of softmax(scale q k^T) over the blocks of the attention matrix, which is never held.
#pragma once

#include "tokcore/attention/block_sparse_attention.h"

namespace tokcore {

enum class BlockStatistic : int8_t {
  kSum,          // of the weights
  kMax,          // greatest weight
  kCountAbove,   // weights above the threshold
  kIncoherence,  // greatest weight over the mean of those that count; 0 where none does
};

struct AttentionBlockScoresParams {
  DType dtype;  // of q and k
  AttentionShape shape;
  HeadsView q;      // [B, H, M, D]
  HeadsView k;      // [B, Hkv, N, D]
  int64_t block_m;  // queries of a block: 64 or 128
  int64_t block_n;  // keys of a block: 64 or 128
  float scale;      // > 0
  bool causal;
  BlockStatistic statistic;
  float threshold;  // of kCountAbove
  float* scores;    // [B, H, ceil(M/block_m), ceil(N/block_n)]
};

void run_attention_block_scores_cpu(const AttentionBlockScoresParams& params, const cpu::Threads& threads);

}  // namespace tokcore
