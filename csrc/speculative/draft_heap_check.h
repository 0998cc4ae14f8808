// The checks of draft_heap, its outputs and its params struct, for both backends; values stay unread.
#pragma once

#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_heap.h"

namespace tokcore::speculative {

inline DraftValue to_value(const Checker& check, const std::string& value) {
  if (value == "residual") return DraftValue::kResidual;
  if (value == "joint") return DraftValue::kJoint;
  check.fail("value", "'residual' or 'joint'", "'" + value + "'");
}

struct HeapArguments {
  const Tensor& candidates;
  const Tensor& probs;
  const Tensor& asked_parents;
  const Tensor& asked_ranks;
  const Tensor& asked_counts;
  const Tensor& roots;
  const Tensor& budgets;
};

// Arguments in, kernel's params and results out; alive while the kernel runs.
class HeapCall {
 public:
  HeapCall(const HeapArguments& a, int64_t max_nodes, const std::string& value, double threshold)
      : candidates_(checked(a, max_nodes)),
        probs_(torch::stable::contiguous(a.probs)),
        parents_(torch::stable::contiguous(a.asked_parents)),
        ranks_(torch::stable::contiguous(a.asked_ranks)),
        counts_(torch::stable::contiguous(a.asked_counts)),
        roots_(torch::stable::contiguous(a.roots)),
        budgets_(torch::stable::contiguous(a.budgets)),
        value_(to_value(check, value)),
        made_(empty_trees(a.candidates, a.candidates.size(0), max_nodes)),
        joint_(core::empty_like_on(a.candidates, {a.candidates.size(0), max_nodes}, ScalarType::Float)),
        sources_(core::empty_like_on(a.candidates, {a.candidates.size(0), max_nodes}, ScalarType::Int)) {
    check.require(threshold >= 0.0 && threshold <= 1.0, "threshold", "a value in [0, 1]", threshold);
    params = {.candidates = core::data_of<int32_t>(candidates_),
              .probs = core::data_of<float>(probs_),
              .parents = core::data_of<int32_t>(parents_),
              .ranks = core::data_of<int32_t>(ranks_),
              .asked = core::data_of<int32_t>(counts_),
              .roots = core::data_of<int64_t>(roots_),
              .budgets = core::data_of<int32_t>(budgets_),
              .num_requests = candidates_.size(0),
              .num_asked = candidates_.size(1),
              .num_candidates = candidates_.size(2),
              .value = value_,
              .threshold = threshold,
              .trees = made_.trees,
              .joint = core::mutable_data_of<float>(joint_),
              .sources = core::mutable_data_of<int32_t>(sources_),
              .lookup = nullptr};
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> result() const {
    return {made_.parents, made_.tokens, made_.counts, joint_, sources_};
  }

  const Checker check{"draft_heap"};
  DraftHeapParams params = {};

 private:
  Tensor checked(const HeapArguments& a, int64_t max_nodes) const {
    check_tensors(check, {{a.candidates, "candidates", ScalarType::Int, 3},
                          {a.probs, "probs", ScalarType::Float, 3},
                          {a.asked_parents, "asked_parents", ScalarType::Int, 2},
                          {a.asked_ranks, "asked_ranks", ScalarType::Int, 2},
                          {a.asked_counts, "asked_counts", ScalarType::Int, 1},
                          {a.roots, "roots", ScalarType::Long, 1},
                          {a.budgets, "budgets", ScalarType::Int, 1}});
    const int64_t B = a.candidates.size(0), M = a.candidates.size(1), K = a.candidates.size(2);
    check.shape(a.probs, "probs", {B, M, K}, "shape of candidates");
    check.shape(a.asked_parents, "asked_parents", {B, M}, "[B, M] of candidates");
    check.shape(a.asked_ranks, "asked_ranks", {B, M}, "[B, M] of candidates");
    check.shape(a.asked_counts, "asked_counts", {B}, "B of candidates");
    check.shape(a.roots, "roots", {B}, "B of candidates");
    check.shape(a.budgets, "budgets", {B}, "B of candidates");
    check_range(check, "candidates", M, 1, kMostDraftNodes, "M, asked nodes");
    check_range(check, "candidates", K, 1, kMostHeapCandidates, "K");
    check_max_nodes(check, max_nodes);
    return torch::stable::contiguous(a.candidates);
  }

  Tensor candidates_, probs_, parents_, ranks_, counts_, roots_, budgets_;
  DraftValue value_;
  TreeTensors made_;
  Tensor joint_, sources_;
};

}  // namespace tokcore::speculative
