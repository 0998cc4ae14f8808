// What the parents of token trees' nodes say: ancestors as bits, depths, and the lists of children.
//
// Node 0 is the root, with parent -1; every other node has a parent of a lower number. A tree has its first `count`
// nodes; what lies beyond is padding. Letters: B trees, N nodes of the largest, W = ceil(N / 64) words.
#pragma once

#include <cstdint>

#include "tokcore/cpu/threads.h"

namespace tokcore {

inline constexpr int64_t kMostTreeNodes = 256;
inline constexpr int64_t kTreeWordBits = 64;

inline constexpr int64_t tree_words(int64_t num_nodes) { return (num_nodes + kTreeWordBits - 1) / kTreeWordBits; }

struct TreeLinksParams {
  const int32_t* parents;  // [B, N], valid
  const int32_t* counts;   // [B] in [0, N]
  int64_t num_trees;       // B
  int64_t num_nodes;       // N
  uint64_t* ancestors;     // [B, N, W]: bit j of a node's words: node j is the node itself or an ancestor; padding: 0
  int32_t* depths;         // [B, N]: 0 for the root and for padding
  int32_t* first_child;    // [B, N]: -1 none
  int32_t* next_sibling;   // [B, N]: of a higher number, -1 none
};

void run_tree_links_cpu(const TreeLinksParams& params, const cpu::Threads& threads);

}  // namespace tokcore
