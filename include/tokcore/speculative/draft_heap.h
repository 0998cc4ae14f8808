// The best tree within a budget, best node first, from what a draft model said at the nodes it was asked at.
//
// Letters: B requests, M nodes at which the draft model was asked (node 0: the root), K candidates of each, N nodes of
// the tree.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/speculative/draft_nodes.h"

namespace tokcore {

inline constexpr int64_t kMostHeapCandidates = 64;

enum class DraftValue {
  kResidual,  // chance that the nodes above are kept and the siblings before are not: DySpec
  kJoint,     // chance that the nodes above and this one are kept: Eagle-2
};

struct DraftHeapParams {
  const int32_t* candidates;  // [B, M, K] below 0: no more
  const float* probs;         // [B, M, K]
  const int32_t* parents;     // [B, M] asked node whose candidate an asked node is; below its own number
  const int32_t* ranks;       // [B, M] which candidate
  const int32_t* asked;       // [B] asked nodes
  const int64_t* roots;       // [B]
  const int32_t* budgets;     // [B] most nodes
  int64_t num_requests, num_asked, num_candidates;
  DraftValue value;
  double threshold;  // nodes of a lower value, and of value 0, are left out
  DraftTrees trees;
  float* joint;      // [B, N] product of probabilities down to the node, 1 at the root, 0 in padding
  int32_t* sources;  // [B, N] the asked node that a node is, -1: not asked
  int16_t* lookup;   // [B, M, K] workspace: asked node by parent and rank, -1 for none
};

// The next candidate of an asked node that is in the tree.
struct DraftCursor {
  double value;      // of that candidate
  double remaining;  // 1 - probabilities of the candidates before it
  double joint;      // of the asked node
  int32_t asked, node, rank;
};

// Whether `a` comes before `b`: greater value, then lower asked node; a node has one cursor at a time.
constexpr bool comes_before(const DraftCursor& a, const DraftCursor& b) {
  return a.value > b.value || (a.value == b.value && a.asked < b.asked);
}

class DraftHeap {
 public:
  constexpr bool is_empty() const { return count_ == 0; }
  constexpr void push(const DraftCursor& cursor) {
    int at = count_++;
    for (; at > 0 && comes_before(cursor, entries_[(at - 1) / 2]); at = (at - 1) / 2) {
      entries_[at] = entries_[(at - 1) / 2];
    }
    entries_[at] = cursor;
  }
  constexpr DraftCursor pop() {
    const DraftCursor best = entries_[0], last = entries_[--count_];
    int at = 0;
    for (int child = 1; child < count_; child = 2 * at + 1) {
      if (child + 1 < count_ && comes_before(entries_[child + 1], entries_[child])) ++child;
      if (!comes_before(entries_[child], last)) break;
      entries_[at] = entries_[child];
      at = child;
    }
    entries_[at] = last;
    return best;
  }

 private:
  DraftCursor entries_[kMostDraftNodes + 1] = {};
  int count_ = 0;
};

// Every step is one fp64 product or difference: the same on every backend.
class DraftHeapRequest {
 public:
  constexpr DraftHeapRequest(const DraftHeapParams& params, int64_t b)
      : p_(params),
        b_(b),
        candidates_(params.candidates + b * params.num_asked * params.num_candidates),
        probs_(params.probs + b * params.num_asked * params.num_candidates),
        lookup_(params.lookup + b * params.num_asked * params.num_candidates),
        tree_(params.trees, b, params.budgets[b]) {}

  constexpr void run() {
    index();
    if (!tree_.is_full()) add(-1, p_.roots[b_], 0, 1.0);
    while (!heap_.is_empty() && !tree_.is_full()) {
      const DraftCursor best = heap_.pop();
      const int64_t cell = best.asked * p_.num_candidates + best.rank;
      add(best.node, candidates_[cell], lookup_[cell], best.joint * static_cast<double>(probs_[cell]));
      const double remaining = best.remaining - static_cast<double>(probs_[cell]);
      consider({0.0, remaining > 0.0 ? remaining : 0.0, best.joint, best.asked, best.node, best.rank + 1});
    }
    const int64_t count = tree_.count();
    tree_.finish();
    for (int64_t node = count; node < p_.trees.max_nodes; ++node) write(node, 0.0, -1);
  }

 private:
  constexpr void index() {
    for (int64_t cell = 0; cell < p_.asked[b_] * p_.num_candidates; ++cell) lookup_[cell] = -1;
    for (int64_t asked = 1; asked < p_.asked[b_]; ++asked) {
      const int64_t at = b_ * p_.num_asked + asked;
      lookup_[p_.parents[at] * p_.num_candidates + p_.ranks[at]] = static_cast<int16_t>(asked);
    }
  }
  constexpr void write(int64_t node, double joint, int32_t source) {
    p_.joint[b_ * p_.trees.max_nodes + node] = static_cast<float>(joint);
    p_.sources[b_ * p_.trees.max_nodes + node] = source;
  }
  constexpr void add(int32_t parent, int64_t token, int32_t asked, double joint) {
    const int32_t node = tree_.add(parent, token);
    const bool was_asked = asked >= 0 && asked < p_.asked[b_];
    write(node, joint, was_asked ? asked : -1);
    if (was_asked) consider({0.0, 1.0, joint, asked, node, 0});
  }
  // Pushes the cursor with its value, unless it is at the end or below the threshold; a NaN is below everything.
  constexpr void consider(DraftCursor cursor) {
    if (cursor.rank >= p_.num_candidates) return;
    const int64_t cell = cursor.asked * p_.num_candidates + cursor.rank;
    if (candidates_[cell] < 0) return;
    const double share = p_.value == DraftValue::kJoint ? static_cast<double>(probs_[cell]) : cursor.remaining;
    cursor.value = cursor.joint * share;
    if (cursor.value > 0.0 && cursor.value >= p_.threshold) heap_.push(cursor);
  }

  const DraftHeapParams& p_;
  int64_t b_;
  const int32_t* candidates_;
  const float* probs_;
  int16_t* lookup_;
  DraftTree tree_;
  DraftHeap heap_;
};

void run_draft_heap_cpu(const DraftHeapParams& params, const cpu::Threads& threads);

}  // namespace tokcore
