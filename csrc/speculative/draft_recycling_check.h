// The checks of draft_recycling and draft_recycling_update, their outputs and params structs, for both backends; values
// stay unread.
#pragma once

#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_recycling.h"

namespace tokcore::speculative {

// Arguments in, kernel's params and results out; alive while the kernel runs.
class RecyclingCall {
 public:
  RecyclingCall(const Tensor& adjacency, const Tensor& roots, const Tensor& budgets, const Tensor& template_parents,
                const Tensor& template_ranks)
      : roots_(checked(adjacency, roots, budgets, template_parents, template_ranks)),
        budgets_(torch::stable::contiguous(budgets)),
        parents_(torch::stable::contiguous(template_parents)),
        ranks_(torch::stable::contiguous(template_ranks)),
        made_(empty_trees(roots, roots.size(0), template_parents.size(0))),
        params({.adjacency = core::data_of<int32_t>(adjacency),
                .roots = core::data_of<int64_t>(roots_),
                .budgets = core::data_of<int32_t>(budgets_),
                .parents = core::data_of<int32_t>(parents_),
                .ranks = core::data_of<int32_t>(ranks_),
                .num_requests = roots.size(0),
                .num_successors = adjacency.size(1),
                .vocab_size = adjacency.size(0),
                .template_nodes = template_parents.size(0),
                .trees = made_.trees}) {}
  std::tuple<Tensor, Tensor, Tensor> result() const { return {made_.parents, made_.tokens, made_.counts}; }

  const Checker check{"draft_recycling"};

 private:
  Tensor checked(const Tensor& adjacency, const Tensor& roots, const Tensor& budgets, const Tensor& template_parents,
                 const Tensor& template_ranks) const {
    check_tensors(check, {{adjacency, "adjacency", ScalarType::Int, 2},
                          {roots, "roots", ScalarType::Long, 1},
                          {budgets, "budgets", ScalarType::Int, 1},
                          {template_parents, "template_parents", ScalarType::Int, 1},
                          {template_ranks, "template_ranks", ScalarType::Int, 1}});
    const int64_t N = template_parents.size(0);
    check.shape(budgets, "budgets", {roots.size(0)}, "B of roots");
    check_range(check, "template_parents", N, 1, kMostDraftNodes, "nodes");
    check.shape(template_ranks, "template_ranks", {N}, "nodes of template_parents");
    check_contiguous(check, adjacency, "adjacency");
    return torch::stable::contiguous(roots);
  }

  Tensor roots_, budgets_, parents_, ranks_;
  TreeTensors made_;

 public:
  const DraftRecyclingParams params;
};

class RecyclingUpdateCall {
 public:
  RecyclingUpdateCall(const Tensor& adjacency, const Tensor& ids, const Tensor& candidates)
      : ids_(checked(adjacency, ids, candidates)),
        candidates_(torch::stable::contiguous(candidates)),
        params({.ids = core::data_of<int64_t>(ids_),
                .candidates = core::data_of<int32_t>(candidates_),
                .num_rows = ids.size(0),
                .num_successors = adjacency.size(1),
                .vocab_size = adjacency.size(0),
                .adjacency = core::mutable_data_of<int32_t>(adjacency)}) {}

  const Checker check{"draft_recycling_update"};

 private:
  Tensor checked(const Tensor& adjacency, const Tensor& ids, const Tensor& candidates) const {
    check_tensors(check, {{adjacency, "adjacency", ScalarType::Int, 2},
                          {ids, "ids", ScalarType::Long, 1},
                          {candidates, "candidates", ScalarType::Int, 2}});
    check.shape(candidates, "candidates", {ids.size(0), adjacency.size(1)}, "[R, K], R of ids and K of adjacency");
    check_contiguous(check, adjacency, "adjacency");
    return torch::stable::contiguous(ids);
  }

  Tensor ids_, candidates_;

 public:
  const DraftRecyclingUpdateParams params;
};

}  // namespace tokcore::speculative
