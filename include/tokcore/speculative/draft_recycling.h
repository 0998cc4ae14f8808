// Token Recycling: a table of every token's likely successors, and trees grown from it along a template.
//
// Letters: B requests, N nodes of the template, V vocabulary, K successors of a token, R rows.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/speculative/draft_nodes.h"

namespace tokcore {

struct DraftRecyclingParams {
  const int32_t* adjacency;  // [V, K] best first; outside [0, V): none known
  const int64_t* roots;      // [B]
  const int32_t* budgets;    // [B] most nodes
  const int32_t* parents;    // [N] template: parents[0] = -1, a parent has the lower number
  const int32_t* ranks;      // [N] which successor of its parent a node is
  int64_t num_requests, num_successors, vocab_size, template_nodes;
  DraftTrees trees;
};

// Template nodes whose token is unknown, and all below them, are left out; those after them move up.
constexpr void draft_recycling_request(const DraftRecyclingParams& p, int64_t b) {
  DraftTree tree(p.trees, b, p.budgets[b]);
  int32_t place[kMostDraftNodes] = {};  // of a template's node in the tree, -1: left out
  for (int64_t node = 0; node < p.template_nodes && !tree.is_full(); ++node) {
    place[node] = -1;
    if (node == 0) {
      place[node] = tree.add(-1, p.roots[b]);
      continue;
    }
    const int32_t parent = place[p.parents[node]];
    if (parent < 0) continue;
    const int64_t token = p.adjacency[tree.token(parent) * p.num_successors + p.ranks[node]];
    if (token >= 0 && token < p.vocab_size) place[node] = tree.add(parent, token);
  }
  tree.finish();
}

struct DraftRecyclingUpdateParams {
  const int64_t* ids;         // [R] below 0: left out
  const int32_t* candidates;  // [R, K]
  int64_t num_rows, num_successors, vocab_size;
  int32_t* adjacency;  // [V, K]
};

// Rows in order, so that of several rows of one token the last one stays.
constexpr void draft_recycling_update_rows(const DraftRecyclingUpdateParams& p) {
  for (int64_t r = 0; r < p.num_rows; ++r) {
    if (p.ids[r] < 0) continue;
    for (int64_t i = 0; i < p.num_successors; ++i) {
      p.adjacency[p.ids[r] * p.num_successors + i] = p.candidates[r * p.num_successors + i];
    }
  }
}

void run_draft_recycling_cpu(const DraftRecyclingParams& params, const cpu::Threads& threads);
void run_draft_recycling_update_cpu(const DraftRecyclingUpdateParams& params);

}  // namespace tokcore
