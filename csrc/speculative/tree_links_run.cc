// tree_links on the CPU: a walk over integers, which no instruction set makes faster.
#include "tokcore/speculative/tree_links.h"

namespace tokcore {
namespace {

void link_tree(const TreeLinksParams& p, int64_t tree) {
  const int64_t first = tree * p.num_nodes, words = tree_words(p.num_nodes), count = p.counts[tree];
  const int32_t* parents = p.parents + first;
  uint64_t* ancestors = p.ancestors + first * words;
  int32_t* depths = p.depths + first;
  int32_t* first_child = p.first_child + first;
  int32_t* next_sibling = p.next_sibling + first;
  for (int64_t node = 0; node < p.num_nodes; ++node) {
    first_child[node] = next_sibling[node] = -1;
    const bool has_parent = node > 0 && node < count;
    for (int64_t word = 0; word < words; ++word) {
      ancestors[node * words + word] = has_parent ? ancestors[parents[node] * words + word] : 0;
    }
    if (node < count) ancestors[node * words + node / kTreeWordBits] |= uint64_t{1} << node % kTreeWordBits;
    depths[node] = has_parent ? depths[parents[node]] + 1 : 0;
  }
  // From the last node on, so that a list starts with its lowest number.
  for (int64_t node = count - 1; node > 0; --node) {
    next_sibling[node] = first_child[parents[node]];
    first_child[parents[node]] = static_cast<int32_t>(node);
  }
}

}  // namespace

void run_tree_links_cpu(const TreeLinksParams& params, const cpu::Threads& threads) {
  cpu::for_each_item(threads, params.num_trees, [&](int64_t tree, int) { link_tree(params, tree); });
}

}  // namespace tokcore
