// Which tiles of keys a block of queries works on: the mask's bits are decoded as the tiles are loaded, word by word
// and bit by bit, so that neither a list nor a plan is needed.
#pragma once

#include "tokcore/attention/block_sparse_attention.h"
#include "tokcore/cuda/kernel.h"

namespace tokcore::attention {

inline constexpr int kHalfRows = 64;  // the least block of queries

// Sizes of blocks are 64 and 128; a division would be a call.
TOKCORE_HOST_DEVICE int log2_of_block(int64_t block) { return block == 128 ? 7 : 6; }

// The queries of a block of the grid: the tiles of a head follow one another, with `causal` the longest first.
template <int kRows>
struct QueryRows {
  int index;  // batch entry and head
  int first_row;

  TOKCORE_DEVICE QueryRows(const BlockSparseAttentionParams& params, int block) {
    const int num_tiles = (static_cast<int>(params.shape.query_length) + kRows - 1) / kRows;
    index = block / num_tiles;
    const int tile = block - index * num_tiles;
    first_row = (params.causal ? num_tiles - 1 - tile : tile) * kRows;
  }
};

// A tile of keys, and which halves of the queries keep it.
struct KeyTile {
  static constexpr int member = 0;  // queries walk the keys of one head
  int first;
  uint32_t halves;  // bit h: rows 64 h … 64 h + 63

  TOKCORE_DEVICE bool exists() const { return halves != 0; }
  TOKCORE_DEVICE bool is_kept_by(int half) const { return (halves >> half & 1) != 0; }
};

// Up to two stretches of 64 queries walk the union of the blocks of keys that they keep, so that what both keep is read
// once. Every thread walks alike; what can be had from the params again is not kept in registers.
template <int kHalves, int kTileKeys>
class KeyTileWalk {
 public:
  // The queries are first_row … first_row + 64 kHalves - 1; last_row is the last of them that exists.
  TOKCORE_DEVICE KeyTileWalk(const BlockSparseAttentionParams& params, int64_t batch, int64_t head, int first_row,
                             int last_row)
      : params_(params) {
    const AttentionShape& shape = params.shape;
    end_ = static_cast<int>(shape.key_length);
    if (params.causal) end_ = static_cast<int>(max(min(end_, last_row + 1 + shape.causal_offset()), int64_t{0}));
    const int shift_m = log2_of_block(params.mask.block_m);
    bits_ = params.mask.row(batch, head, first_row >> shift_m);
    // The second half's row: that of the first, the next one, or none.
    const int second_row = first_row + kHalfRows;
    rows_on_ = kHalves == 2 && second_row <= last_row ? (second_row >> shift_m) - (first_row >> shift_m) : kNone;
  }

  // Moves to the next tile, or to one that does not exist after the last.
  TOKCORE_DEVICE void advance() {
    const int shift_n = log2_of_block(params_.mask.block_n), following = tile_.first + kTileKeys;
    if (tile_.exists() && (following & ((1 << shift_n) - 1)) != 0 && following < end_) {
      tile_.first = following;
      return;
    }
    while ((words_[0] | words_[1]) == 0) {
      word_ += 1;
      if ((word_ * 32 << shift_n) >= end_) {
        tile_.halves = 0;
        return;
      }
      const int num_columns = (end_ + (1 << shift_n) - 1) >> shift_n;
      words_[0] = mask_word(bits_, word_, num_columns);
      if (rows_on_ != kNone) words_[1] = mask_word(bits_ + rows_on_ * params_.mask.stride_row, word_, num_columns);
    }
    const uint32_t either = words_[0] | words_[1], lowest = either & (0 - either);
    tile_.first = (word_ * 32 + __ffs(static_cast<int>(either)) - 1) << shift_n;
    tile_.halves = ((words_[0] & lowest) != 0 ? 1u : 0u) | ((words_[1] & lowest) != 0 ? 2u : 0u);
    words_[0] &= ~lowest;
    words_[1] &= ~lowest;
  }
  TOKCORE_DEVICE const KeyTile& tile() const { return tile_; }

 private:
  static constexpr int kNone = -1;

  const BlockSparseAttentionParams& params_;
  const uint32_t* bits_;
  int rows_on_;  // of blocks, from the first half's to the second's
  int end_;      // no query sees this key
  int word_ = -1;
  uint32_t words_[2] = {0, 0};
  KeyTile tile_ = {0, 0};
};

}  // namespace tokcore::attention
