// The checks of draft_trigram and draft_trigram_update, their outputs and params structs, for both backends; values
// stay unread.
#pragma once

#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_trigram.h"

namespace tokcore::speculative {

inline void check_table(const Checker& check, const Tensor& keys, const Tensor& successors, const Tensor& probs) {
  const int64_t S = keys.size(0), K = successors.size(1);
  check.require(S > 0 && (S & (S - 1)) == 0, "keys", "S a power of two", S);
  check.shape(successors, "successors", {S, K}, "[S, K], S of keys");
  check.require(K >= 1, "successors", "K >= 1", K);
  check.shape(probs, "probs", {S, K}, "[S, K] of successors");
}

inline TrigramTable table_of(const Checker& check, const Tensor& keys, const Tensor& successors, const Tensor& probs) {
  check_contiguous(check, keys, "keys");
  check_contiguous(check, successors, "successors");
  check_contiguous(check, probs, "probs");
  return {core::mutable_data_of<int64_t>(keys), core::mutable_data_of<int32_t>(successors),
          core::mutable_data_of<float>(probs), keys.size(0), successors.size(1)};
}

struct TrigramArguments {
  const Tensor& keys;
  const Tensor& successors;
  const Tensor& probs;
  const Tensor& previous;
  const Tensor& roots;
  const Tensor& budgets;
  int64_t vocab_size, max_nodes, simulations, max_depth;
  double exploration;
};

// Arguments in, kernel's params and results out; alive while the kernel runs. Edges and slots are the backend's.
class TrigramCall {
 public:
  explicit TrigramCall(const TrigramArguments& a)
      : table_(checked(a)),
        previous_(torch::stable::contiguous(a.previous)),
        roots_(torch::stable::contiguous(a.roots)),
        budgets_(torch::stable::contiguous(a.budgets)),
        made_(empty_trees(a.roots, a.roots.size(0), a.max_nodes)),
        joint_(core::empty_like_on(a.roots, {a.roots.size(0), a.max_nodes}, ScalarType::Float)),
        params({.table = table_,
                .previous = core::data_of<int64_t>(previous_),
                .roots = core::data_of<int64_t>(roots_),
                .budgets = core::data_of<int32_t>(budgets_),
                .num_requests = a.roots.size(0),
                .vocab_size = a.vocab_size,
                .simulations = a.simulations,
                .max_depth = a.max_depth,
                .exploration = a.exploration,
                .trees = made_.trees,
                .joint = core::mutable_data_of<float>(joint_),
                .edges = nullptr,
                .slots = nullptr}) {}
  std::tuple<Tensor, Tensor, Tensor, Tensor> result() const {
    return {made_.parents, made_.tokens, made_.counts, joint_};
  }

  const Checker check{"draft_trigram"};

 private:
  TrigramTable checked(const TrigramArguments& a) const {
    check_tensors(check, {{a.keys, "keys", ScalarType::Long, 1},
                          {a.successors, "successors", ScalarType::Int, 2},
                          {a.probs, "probs", ScalarType::Float, 2},
                          {a.previous, "previous", ScalarType::Long, 1},
                          {a.roots, "roots", ScalarType::Long, 1},
                          {a.budgets, "budgets", ScalarType::Int, 1}});
    check_table(check, a.keys, a.successors, a.probs);
    check.shape(a.previous, "previous", {a.roots.size(0)}, "B of roots");
    check.shape(a.budgets, "budgets", {a.roots.size(0)}, "B of roots");
    check_range(check, "vocab_size", a.vocab_size, 1, (int64_t{1} << 31) - 1, "tokens");
    check_max_nodes(check, a.max_nodes);
    check_range(check, "simulations", a.simulations, 0, int64_t{1} << 20, "simulations");
    check_range(check, "max_depth", a.max_depth, 1, kMostTrigramDepth, "tokens");
    check.require(a.exploration >= 0.0 && std::isfinite(a.exploration), "exploration", "a finite value >= 0",
                  a.exploration);
    return table_of(check, a.keys, a.successors, a.probs);
  }

  TrigramTable table_;
  Tensor previous_, roots_, budgets_;
  TreeTensors made_;
  Tensor joint_;

 public:
  DraftTrigramParams params;
};

class TrigramUpdateCall {
 public:
  TrigramUpdateCall(const Tensor& keys, const Tensor& successors, const Tensor& probs, const Tensor& contexts,
                    const Tensor& candidates, const Tensor& candidate_probs)
      : table_(checked(keys, successors, probs, contexts, candidates, candidate_probs)),
        contexts_(torch::stable::contiguous(contexts)),
        candidates_(torch::stable::contiguous(candidates)),
        probs_(torch::stable::contiguous(candidate_probs)),
        params({.table = table_,
                .contexts = core::data_of<int64_t>(contexts_),
                .candidates = core::data_of<int32_t>(candidates_),
                .probs = core::data_of<float>(probs_),
                .num_rows = contexts.size(0)}) {}

  const Checker check{"draft_trigram_update"};

 private:
  TrigramTable checked(const Tensor& keys, const Tensor& successors, const Tensor& probs, const Tensor& contexts,
                       const Tensor& candidates, const Tensor& candidate_probs) const {
    check_tensors(check, {{keys, "keys", ScalarType::Long, 1},
                          {successors, "successors", ScalarType::Int, 2},
                          {probs, "probs", ScalarType::Float, 2},
                          {contexts, "contexts", ScalarType::Long, 2},
                          {candidates, "candidates", ScalarType::Int, 2},
                          {candidate_probs, "candidate_probs", ScalarType::Float, 2}});
    check_table(check, keys, successors, probs);
    const int64_t R = contexts.size(0), K = successors.size(1);
    check.shape(contexts, "contexts", {R, 2}, "pairs");
    check.shape(candidates, "candidates", {R, K}, "[R, K], R of contexts and K of successors");
    check.shape(candidate_probs, "candidate_probs", {R, K}, "shape of candidates");
    return table_of(check, keys, successors, probs);
  }

  TrigramTable table_;
  Tensor contexts_, candidates_, probs_;

 public:
  const DraftTrigramUpdateParams params;
};

}  // namespace tokcore::speculative
