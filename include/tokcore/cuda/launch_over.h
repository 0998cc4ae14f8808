// The launch of a grid that is as large as its work.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "tokcore/common/math.h"
#include "tokcore/cuda/launch.h"

namespace tokcore::cuda {

// A grid of as many blocks as `items` need; more than a grid can have is an error.
inline LaunchConfig launch_over(int64_t items, unsigned items_of_block, unsigned threads, Stream stream,
                                const char* name) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  const int64_t blocks = ceil_div(items, items_of_block);
  if (blocks > kMostBlocks) {
    throw std::runtime_error(std::string("tokcore: kernel ") + name + " would need " + std::to_string(blocks) +
                             " blocks, a grid has at most " + std::to_string(kMostBlocks));
  }
  return {.grid = {static_cast<unsigned>(blocks)}, .threads = threads, .stream = stream, .name = name};
}

}  // namespace tokcore::cuda
