// What the kernel of attention_block_scores takes.
#pragma once

#include "attention/attention_heads_cuda.cuh"
#include "attention/attention_scale.cuh"
#include "tokcore/attention/attention_block_scores.h"

namespace tokcore::attention {

// Queries that a block of the grid takes at a time: the greatest block of queries.
inline constexpr int kScoredQueries = 128;

// What a block of keys is to one query.
struct BlockPartial {
  float maximum;  // greatest score q k^T; -ScoreScale::limit where nothing counts
  float sum;      // of 2^(factor (score - maximum)); or, in the second sweep of kCountAbove, how many weights exceed
};

struct BlockScoresTask {
  AttentionBlockScoresParams params;  // q and k with aligned rows
  int columns;                        // of a row, whole chunks of 16 bytes
  ScoreScale scale;
  int num_tiles;           // of kScoredQueries queries, of all heads
  int num_blocks;          // of the grid
  BlockPartial* partials;  // [num_blocks, blocks of keys, kScoredQueries]
};

}  // namespace tokcore::attention
