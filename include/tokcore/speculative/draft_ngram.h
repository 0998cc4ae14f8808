// N-gram lookup: what followed the last tokens wherever they stood before, merged into one tree.
//
// Letters: B requests, L tokens of the longest history, N nodes.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/speculative/draft_nodes.h"

namespace tokcore {

struct DraftNgramParams {
  const int64_t* history;  // [B, L] the last token is the root
  const int32_t* lengths;  // [B]
  const int32_t* budgets;  // [B] most nodes
  int64_t num_requests, row_length;
  int64_t longest, shortest;  // n-grams that are looked for, the longest first
  int64_t max_depth;          // tokens taken after a place
  DraftTrees trees;
};

// Whether the `count` tokens up to and with `end` are the last ones of the history.
constexpr bool is_suffix(const int64_t* history, int64_t length, int64_t end, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (history[end - i] != history[length - 1 - i]) return false;
  }
  return true;
}

// Longer n-grams before shorter ones, recent places before old ones, until the budget is spent.
constexpr void draft_ngram_request(const DraftNgramParams& p, int64_t b) {
  const int64_t* history = p.history + b * p.row_length;
  const int64_t length = p.lengths[b];
  DraftTree tree(p.trees, b, length > 0 ? p.budgets[b] : 0);
  if (!tree.is_full()) tree.add(-1, history[length - 1]);
  for (int64_t n = p.longest; n >= p.shortest && !tree.is_full(); --n) {
    for (int64_t end = length - 2; end >= n - 1 && !tree.is_full(); --end) {
      if (!is_suffix(history, length, end, n)) continue;
      int32_t node = 0;
      for (int64_t i = end + 1; i < length && i <= end + p.max_depth; ++i) {
        const int32_t known = tree.find(node, history[i]);
        if (known < 0 && tree.is_full()) break;
        node = known >= 0 ? known : tree.add(node, history[i]);
      }
    }
  }
  tree.finish();
}

void run_draft_ngram_cpu(const DraftNgramParams& params, const cpu::Threads& threads);

}  // namespace tokcore
