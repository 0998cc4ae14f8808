// The trees that draft builders write: what every builder shares. Plain code for host and device alike.
//
// Letters: B requests, N nodes of the largest tree.
#pragma once

#include <cstdint>

namespace tokcore {

inline constexpr int64_t kMostDraftNodes = 256;
inline constexpr int32_t kNoToken = -1;

struct DraftTrees {
  int32_t* parents;  // [B, N] -1: the root, and padding
  int64_t* tokens;   // [B, N] 0: padding
  int32_t* counts;   // [B]
  int64_t max_nodes;
};

// Writes one request's tree: nodes in the order in which they are added, so that a parent has the lower number.
class DraftTree {
 public:
  constexpr DraftTree(const DraftTrees& trees, int64_t request, int64_t budget)
      : parents_(trees.parents + request * trees.max_nodes),
        tokens_(trees.tokens + request * trees.max_nodes),
        count_out_(trees.counts + request),
        max_nodes_(trees.max_nodes),
        budget_(budget) {}

  constexpr int32_t count() const { return count_; }
  constexpr bool is_full() const { return count_ >= budget_; }
  constexpr int64_t token(int32_t node) const { return tokens_[node]; }

  constexpr int32_t add(int32_t parent, int64_t token) {
    parents_[count_] = parent;
    tokens_[count_] = token;
    return count_++;
  }
  // The child of `parent` with this token, or -1.
  constexpr int32_t find(int32_t parent, int64_t token) const {
    for (int32_t node = parent + 1; node < count_; ++node) {
      if (parents_[node] == parent && tokens_[node] == token) return node;
    }
    return -1;
  }
  constexpr void finish() {
    *count_out_ = count_;
    for (int64_t node = count_; node < max_nodes_; ++node) {
      parents_[node] = -1;
      tokens_[node] = 0;
    }
  }

 private:
  int32_t* parents_;
  int64_t* tokens_;
  int32_t* count_out_;
  int64_t max_nodes_, budget_;
  int32_t count_ = 0;
};

}  // namespace tokcore
