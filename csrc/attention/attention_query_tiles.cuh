// Which tiles of queries a tile of keys works on: the queries of all heads of its group that keep the keys' block.
#pragma once

#include "attention/attention_key_tiles.cuh"
#include "tokcore/cuda/reduce.cuh"

namespace tokcore::attention {

struct QueryTile {
  int first;
  int member;  // query head of the key head's group; -1: there is none
  TOKCORE_DEVICE bool exists() const { return member >= 0; }
};

// Walks a column of the mask: each lane reads the word of one row of blocks, and a vote makes 32 rows a word whose
// lowest bit is the next block. Every warp walks alike.
template <int kTileQueries>
class QueryTileWalk {
 public:
  // The keys are first_key … last_key, of one block; head is the first of the group.
  TOKCORE_DEVICE QueryTileWalk(const BlockSparseAttentionParams& params, int64_t batch, int64_t head, int first_key,
                               int)
      : params_(params) {
    column_ = first_key >> log2_of_block(params.mask.block_n);
    bits_ = params.mask.row(batch, head, 0) + column_ / 32;
    // The first query that sees the first key.
    const int64_t seen_from = params.causal ? first_key - params.shape.causal_offset() : 0;
    seen_from_ = static_cast<int>(max(seen_from, int64_t{0})) / kTileQueries * kTileQueries;
    start_head();
  }

  TOKCORE_DEVICE void advance() {
    const AttentionShape& shape = params_.shape;
    const int shift_m = log2_of_block(params_.mask.block_m), following = tile_.first + kTileQueries;
    const int length = static_cast<int>(shape.query_length);
    if (tile_.exists() && (following & ((1 << shift_m) - 1)) != 0 && following < length) {
      tile_.first = following;
      return;
    }
    while (word_ == 0) {
      if (next_row_ << shift_m >= length) {
        if (++member_ == static_cast<int>(shape.num_heads) / static_cast<int>(shape.num_kv_heads)) {
          tile_.member = -1;
          return;
        }
        bits_ += params_.mask.stride_head;
        start_head();
        continue;
      }
      const int row = next_row_ + static_cast<int>(threadIdx.x) % 32;
      const bool keeps = row << shift_m < length && (bits_[row * params_.mask.stride_row] >> column_ % 32 & 1) != 0;
      word_ = __ballot_sync(cuda::kAllLanes, keeps);
      first_row_ = next_row_;
      next_row_ += 32;
    }
    const int first = (first_row_ + __ffs(static_cast<int>(word_)) - 1) << shift_m;
    word_ &= word_ - 1;
    tile_ = {first > seen_from_ ? first : seen_from_, member_};
  }
  TOKCORE_DEVICE const QueryTile& tile() const { return tile_; }

 private:
  TOKCORE_DEVICE void start_head() { next_row_ = seen_from_ >> log2_of_block(params_.mask.block_m); }

  const BlockSparseAttentionParams& params_;
  const uint32_t* bits_;  // of the head's first row of blocks
  int column_;
  int seen_from_;
  int member_ = 0;
  int first_row_ = 0;
  int next_row_ = 0;
  uint32_t word_ = 0;  // rows first_row_ … first_row_ + 31
  QueryTile tile_ = {0, -1};
};

}  // namespace tokcore::attention
