// Sizes that the launchers choose: pure functions of the call and the machine.
#pragma once

#include "tokcore/common/math.h"
#include "tokcore/cross_entropy/linear_logprobs_cuda.h"
#include "tokcore/cuda/tile_order.h"

namespace tokcore::cross_entropy {

// Vocabulary rows of a tile of dz, and rows of e (active positions) of a tile of products.
inline constexpr int64_t kGradientTile = 128;
inline constexpr int64_t kRowTile = 128;

// Columns of packed rows of e: whole stages of every mainloop.
constexpr int64_t packed_columns(int64_t hidden_size) { return round_up(hidden_size, 64); }

// Vocabulary rows whose statistics are summed together. It depends on V alone, so that a row's result does not depend
// on the rest of the batch; whole pairs of tiles, which two blocks of a cluster share; at most 128 blocks, so that
// partial statistics stay below a hundredth of the logits.
constexpr int64_t vocab_block_of(int64_t vocab_size) {
  return max(round_up(ceil_div(vocab_size, 128), 2 * kGradientTile), 2 * kGradientTile);
}

// Tiles of `rows` rows that run side by side: what they share of e should stay in half the L2.
template <class T>
constexpr int64_t row_tile_group(int64_t rows, int64_t columns, const CudaMachine& machine) {
  return cuda::tile_group(rows * columns * static_cast<int64_t>(sizeof(T)), machine.l2_bytes / 2);
}

// Bytes of dz that are made before they are multiplied. Each chunk costs one pass over the sums of grad_e, so it grows
// with them; what the filter leaves is little, and larger chunks save launches.
inline constexpr int64_t kGradientChunkBytes = int64_t{128} << 20;
inline constexpr int64_t kFilteredChunkBytes = int64_t{256} << 20;
inline constexpr int64_t kFewestChunkTiles = 8;  // unless the caller's bound forbids

constexpr int64_t default_chunk_tiles(int64_t padded, int64_t element_bytes, int64_t vocab_size, bool filters) {
  const int64_t budget = filters ? kFilteredChunkBytes : kGradientChunkBytes;
  const int64_t tiles = max(budget / max(padded * kGradientTile * element_bytes, 1), kFewestChunkTiles);
  return max(min(tiles, ceil_div(vocab_size, kGradientTile)), 1);
}

}  // namespace tokcore::cross_entropy
