// In which order the blocks of a grid take the tiles of a matrix, so that those that run together share operands in L2.
#pragma once

#include <cstdint>

#include "tokcore/common/math.h"

namespace tokcore::cuda {

// Tiles are counted in 32 bits, as blocks of a grid are: a GPU divides 64-bit numbers by a call.
struct TileCoordinates {
  int row;
  int column;
};

// Groups of `group` tile rows after one another; inside a group column by column, the rows of a column side by side.
constexpr TileCoordinates tile_in_order(int index, int num_rows, int num_columns, int group) {
  const int first_row = index / (group * num_columns) * group;
  const int rows = min(num_rows - first_row, group);
  const int inside = index - first_row * num_columns;
  return {first_row + inside % rows, inside / rows};
}

// The rows of tiles whose operand takes at most `bytes` of L2, at least one.
constexpr int64_t tile_group(int64_t bytes_of_row, int64_t bytes) { return max(bytes / max(bytes_of_row, 1), 1); }

// Into how many parts to cut a row of `length` steps, so that `num_rows * parts` blocks of which `slots` run at a time
// end soonest, if starting a block costs a quarter of a step; of equally good numbers the smallest.
constexpr int64_t best_split(int64_t num_rows, int64_t length, int64_t slots) {
  int64_t best = 1, least = 0;
  for (int64_t parts = 1; parts <= length; ++parts) {
    const int64_t time = ceil_div(num_rows * parts, slots) * (4 * ceil_div(length, parts) + 1);
    if (parts == 1 || time < least) {
      best = parts;
      least = time;
    }
  }
  return best;
}

}  // namespace tokcore::cuda
