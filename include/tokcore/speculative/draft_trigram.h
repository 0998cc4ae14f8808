// ADED: a table P(x | a, b) of a text's trigrams, and trees searched in it by PUCT.
//
// Letters: B requests, S slots of the table (a power of two), K successors of a pair, R rows, N nodes.
#pragma once

#include <cmath>

#include "tokcore/cpu/threads.h"
#include "tokcore/speculative/draft_nodes.h"

namespace tokcore {

inline constexpr int64_t kMostTrigramDepth = 64;
inline constexpr int64_t kMostTrigramTokens = int64_t{1} << 31;

constexpr int64_t trigram_key(int64_t a, int64_t b) { return (a << 32) | b; }

// Where a pair's row lies. The table is a cache: a pair that hashes to the same slot takes it over.
constexpr int64_t trigram_slot(int64_t key, int64_t num_slots) {
  uint64_t x = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93;
  return static_cast<int64_t>((x ^ (x >> 29)) & static_cast<uint64_t>(num_slots - 1));
}

struct TrigramTable {
  int64_t* keys;    // [S] a * 2^32 + b, -1: empty
  int32_t* tokens;  // [S, K] best first, below 0: no more
  float* probs;     // [S, K]
  int64_t num_slots, num_successors;
};

struct DraftTrigramUpdateParams {
  TrigramTable table;
  const int64_t* contexts;    // [R, 2] pairs; a token below 0: row left out
  const int32_t* candidates;  // [R, K]
  const float* probs;         // [R, K]
  int64_t num_rows;
};

// Rows in order, so that of several rows of one slot the last one stays.
constexpr void draft_trigram_update_rows(const DraftTrigramUpdateParams& p) {
  const int64_t K = p.table.num_successors;
  for (int64_t r = 0; r < p.num_rows; ++r) {
    const int64_t a = p.contexts[2 * r], b = p.contexts[2 * r + 1];
    if (a < 0 || b < 0) continue;
    const int64_t slot = trigram_slot(trigram_key(a, b), p.table.num_slots);
    p.table.keys[slot] = trigram_key(a, b);
    for (int64_t i = 0; i < K; ++i) {
      p.table.tokens[slot * K + i] = p.candidates[r * K + i];
      p.table.probs[slot * K + i] = p.probs[r * K + i];
    }
  }
}

// What the search knows of a successor of a node.
struct TrigramEdge {
  double total;    // of the gains that passed through it
  int32_t visits;  // simulations that did
  int32_t child;   // node, -1: none yet
};

struct DraftTrigramParams {
  TrigramTable table;
  const int64_t* previous;  // [B] the token before the root; below 0: none
  const int64_t* roots;     // [B]
  const int32_t* budgets;   // [B] most nodes
  int64_t num_requests, vocab_size;
  int64_t simulations, max_depth;
  double exploration;
  DraftTrees trees;
  float* joint;        // [B, N] product of probabilities down to the node, 0 in padding
  TrigramEdge* edges;  // [B, N, K] workspace
  int64_t* slots;      // [B, N] workspace: a node's row of the table, -1: none
};

// Each simulation goes down by the greatest Q + c P sqrt(visits of the node) / (1 + visits of the edge), the lower rank
// where two are equal, and ends at a new node, at the greatest depth or where the table knows no more. An edge gains
// the expected number of tokens kept from it on along that path, over max_depth; Q is the mean gain. Every step is one
// fp64 operation.
class DraftTrigramRequest {
 public:
  constexpr DraftTrigramRequest(const DraftTrigramParams& params, int64_t b)
      : p_(params),
        b_(b),
        K_(params.table.num_successors),
        edges_(params.edges + b * params.trees.max_nodes * params.table.num_successors),
        slots_(params.slots + b * params.trees.max_nodes),
        joint_(params.joint + b * params.trees.max_nodes),
        tree_(params.trees, b, params.budgets[b]) {}

  constexpr void run() {
    if (!tree_.is_full()) add(-1, p_.previous[b_], p_.roots[b_], 1.0);
    for (int64_t i = 0; i < p_.simulations && tree_.count() > 0 && !tree_.is_full(); ++i) simulate();
    const int64_t count = tree_.count();
    tree_.finish();
    for (int64_t node = count; node < p_.trees.max_nodes; ++node) joint_[node] = 0.0f;
  }

 private:
  constexpr int32_t add(int32_t parent, int64_t before, int64_t token, double joint) {
    const int32_t node = tree_.add(parent, token);
    joint_[node] = static_cast<float>(joint);
    slots_[node] = -1;
    for (int64_t i = 0; i < K_; ++i) edges_[node * K_ + i] = {0.0, 0, -1};
    if (before < 0) return node;
    const int64_t slot = trigram_slot(trigram_key(before, token), p_.table.num_slots);
    if (p_.table.keys[slot] == trigram_key(before, token)) slots_[node] = slot;
    return node;
  }

  // The rank to go down by, -1 where the table knows no successor.
  constexpr int64_t select(int32_t node) const {
    if (slots_[node] < 0) return -1;
    const int32_t* tokens = p_.table.tokens + slots_[node] * K_;
    const float* probs = p_.table.probs + slots_[node] * K_;
    const TrigramEdge* edges = edges_ + node * K_;
    int32_t visits = 1;
    for (int64_t i = 0; i < K_; ++i) visits += edges[i].visits;
    const double root = std::sqrt(static_cast<double>(visits));
    int64_t best = -1;
    double greatest = 0.0;
    for (int64_t i = 0; i < K_; ++i) {
      if (tokens[i] < 0 || tokens[i] >= p_.vocab_size || !(probs[i] > 0.0f)) continue;
      const double mean = edges[i].visits > 0 ? edges[i].total / edges[i].visits : 0.0;
      const double prior = p_.exploration * static_cast<double>(probs[i]);
      const double bonus = prior * root / (1 + edges[i].visits);
      const double score = mean + bonus;
      if (best < 0 || score > greatest) {
        best = i;
        greatest = score;
      }
    }
    return best;
  }

  constexpr void simulate() {
    int64_t passed[kMostTrigramDepth] = {};  // edges, by their place
    double probs[kMostTrigramDepth] = {};
    int64_t depth = 0;
    int32_t node = 0;
    double joint = 1.0;
    while (depth < p_.max_depth) {
      const int64_t rank = select(node);
      if (rank < 0) break;
      const int64_t edge = node * K_ + rank, cell = slots_[node] * K_ + rank;
      probs[depth] = static_cast<double>(p_.table.probs[cell]);
      joint = joint * probs[depth];
      passed[depth++] = edge;
      const bool fresh = edges_[edge].child < 0;
      if (fresh) edges_[edge].child = add(node, tree_.token(node), p_.table.tokens[cell], joint);
      node = edges_[edge].child;
      if (fresh) break;
    }
    double gain = 0.0;
    for (int64_t i = depth - 1; i >= 0; --i) {
      const double below = 1.0 + gain;
      gain = probs[i] * below;
      edges_[passed[i]].total += gain / static_cast<double>(p_.max_depth);
      ++edges_[passed[i]].visits;
    }
  }

  const DraftTrigramParams& p_;
  int64_t b_, K_;
  TrigramEdge* edges_;
  int64_t* slots_;
  float* joint_;
  DraftTree tree_;
};

void run_draft_trigram_cpu(const DraftTrigramParams& params, const cpu::Threads& threads);
void run_draft_trigram_update_cpu(const DraftTrigramUpdateParams& params);

}  // namespace tokcore
