// What the draft builders' kernels share.
#pragma once

#include "tokcore/cuda/kernel.h"
#include "tokcore/speculative/draft_nodes.h"

namespace tokcore::speculative {

TOKCORE_DEVICE bool is_within(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

// The nodes behind the last one, by all threads of the block.
TOKCORE_DEVICE void finish_tree(const DraftTrees& trees, int64_t request, int64_t count) {
  for (int64_t node = count + threadIdx.x; node < trees.max_nodes; node += blockDim.x) {
    trees.parents[request * trees.max_nodes + node] = -1;
    trees.tokens[request * trees.max_nodes + node] = 0;
  }
  if (threadIdx.x == 0) trees.counts[request] = static_cast<int32_t>(count);
}

}  // namespace tokcore::speculative
