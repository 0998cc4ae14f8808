// Validation of token trees given as parents and counts; shared by the backends.
#pragma once

#include "core/tensors.h"
#include "tokcore/speculative/tree_links.h"

namespace tokcore::speculative {

using core::Checker;
using core::ScalarType;
using core::Tensor;

inline void check_trees(const Checker& check, const Tensor& parents, const Tensor& counts) {
  check.dtype(parents, "parents", ScalarType::Int);
  check.dtype(counts, "counts", ScalarType::Int);
  check.same_device(counts, "counts", parents, "parents");
  check.rank(parents, "parents", 2);
  check.shape(counts, "counts", {parents.size(0)}, "B of parents");
  const int64_t num_nodes = parents.size(1);
  check.require(num_nodes >= 1 && num_nodes <= kMostTreeNodes, "parents", "N in [1, 256]", num_nodes);
}

// What kernels follow without looking. Reads the values of both, contiguous.
inline void check_tree_values(const Checker& check, const int32_t* parents, const int32_t* counts, int64_t num_trees,
                              int64_t num_nodes) {
  for (int64_t b = 0; b < num_trees; ++b) {
    const std::string request = " of request " + std::to_string(b);
    if (counts[b] < 0 || counts[b] > num_nodes) {
      check.fail("counts", "a value in [0, " + std::to_string(num_nodes) + "] (N of parents)",
                 std::to_string(counts[b]) + request);
    }
    for (int64_t node = 0; node < counts[b]; ++node) {
      const int32_t parent = parents[b * num_nodes + node];
      if (node == 0 ? parent == -1 : parent >= 0 && parent < node) continue;
      const std::string expected =
          node == 0 ? "-1 for the root" : "a value in [0, " + std::to_string(node) + ") (a node before its own)";
      check.fail("parents", expected, std::to_string(parent) + " at node " + std::to_string(node) + request);
    }
  }
}

}  // namespace tokcore::speculative
