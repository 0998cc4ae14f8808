// A block mask as kernels read it: one bit a block of the attention matrix, found by its lowest set bit.
#pragma once

#include <cstdint>

#include "tokcore/common/math.h"

namespace tokcore {

struct BlockMaskView {
  const uint32_t* bits;  // [1 or B, 1 or H, ceil(M/block_m), ceil(ceil(N/block_n)/32)] bit j % 32 of word j / 32
  int64_t stride_batch;  // words; 0 where one batch entry serves all
  int64_t stride_head;   // words; 0 where one head serves all
  int64_t stride_row;    // words
  int64_t block_m;       // queries of a block: 64 or 128
  int64_t block_n;       // keys of a block: 64 or 128

  constexpr const uint32_t* row(int64_t batch, int64_t head, int64_t block_row) const {
    return bits + batch * stride_batch + head * stride_head + block_row * stride_row;
  }
  constexpr bool keeps(int64_t batch, int64_t head, int64_t block_row, int64_t column) const {
    return (row(batch, head, block_row)[column / 32] >> (column % 32) & 1) != 0;
  }
};

// Word `word` of a mask row without the bits of columns at and after `num_columns`, which mean nothing.
constexpr uint32_t mask_word(const uint32_t* row, int64_t word, int64_t num_columns) {
  const int64_t rest = num_columns - word * 32;
  return rest >= 32 ? row[word] : row[word] & ((uint32_t{1} << rest) - 1);
}

// Calls visit(column) for every kept block of a mask row among the first `num_columns`, ascending.
template <class Visit>
void for_each_kept_block(const uint32_t* row, int64_t num_columns, Visit&& visit) {
  for (int64_t word = 0; word * 32 < num_columns; ++word) {
    for (uint32_t rest = mask_word(row, word, num_columns); rest != 0; rest &= rest - 1) {
      visit(word * 32 + __builtin_ctz(rest));
    }
  }
}

inline int64_t count_kept_blocks(const uint32_t* row, int64_t num_columns) {
  int64_t count = 0;
  for (int64_t word = 0; word * 32 < num_columns; ++word) {
    count += __builtin_popcount(mask_word(row, word, num_columns));
  }
  return count;
}

}  // namespace tokcore
