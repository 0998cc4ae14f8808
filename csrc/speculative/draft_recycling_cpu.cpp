// Torch-facing CPU entries of draft_recycling and draft_recycling_update.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_recycling.h"

namespace tokcore::speculative {
namespace {

void check_template(const Checker& check, const int32_t* parents, const int32_t* ranks, int64_t count,
                    int64_t num_successors) {
  for (int64_t node = 0; node < count; ++node) {
    const bool is_root = node == 0;
    const bool fits = is_root ? parents[0] == -1 : parents[node] >= 0 && parents[node] < node;
    if (!fits) {
      check.fail("template_parents", is_root ? "-1 at node 0" : "a lower node's number, at least 0",
                 std::to_string(parents[node]) + " at node " + std::to_string(node));
    }
    if (is_root || (ranks[node] >= 0 && ranks[node] < num_successors)) continue;
    check.fail("template_ranks", interval(0, num_successors - 1, "K of adjacency"),
               std::to_string(ranks[node]) + " at node " + std::to_string(node));
  }
}

std::tuple<Tensor, Tensor, Tensor> draft_recycling(const Tensor& adjacency, const Tensor& roots, const Tensor& budgets,
                                                   const Tensor& template_parents, const Tensor& template_ranks) {
  const Checker check("draft_recycling");
  check_tensors(check, {{adjacency, "adjacency", ScalarType::Int, 2},
                        {roots, "roots", ScalarType::Long, 1},
                        {budgets, "budgets", ScalarType::Int, 1},
                        {template_parents, "template_parents", ScalarType::Int, 1},
                        {template_ranks, "template_ranks", ScalarType::Int, 1}});
  const int64_t B = roots.size(0), N = template_parents.size(0), V = adjacency.size(0), K = adjacency.size(1);
  check.shape(budgets, "budgets", {B}, "B of roots");
  check_range(check, "template_parents", N, 1, kMostDraftNodes, "nodes");
  check.shape(template_ranks, "template_ranks", {N}, "nodes of template_parents");
  check_contiguous(check, adjacency, "adjacency");
  const Tensor dense_roots = torch::stable::contiguous(roots), dense_budgets = torch::stable::contiguous(budgets);
  const Tensor dense_parents = torch::stable::contiguous(template_parents);
  const Tensor dense_ranks = torch::stable::contiguous(template_ranks);
  const TreeTensors made = empty_trees(roots, B, N);
  const DraftRecyclingParams params = {.adjacency = core::data_of<int32_t>(adjacency),
                                       .roots = core::data_of<int64_t>(dense_roots),
                                       .budgets = core::data_of<int32_t>(dense_budgets),
                                       .parents = core::data_of<int32_t>(dense_parents),
                                       .ranks = core::data_of<int32_t>(dense_ranks),
                                       .num_requests = B,
                                       .num_successors = K,
                                       .vocab_size = V,
                                       .template_nodes = N,
                                       .trees = made.trees};
  check_template(check, params.parents, params.ranks, N, K);
  check_values(check, "roots", params.roots, B, 0, V - 1, "V of adjacency");
  check_values(check, "budgets", params.budgets, B, 0, N, "nodes of the template");
  run_draft_recycling_cpu(params, core::torch_threads());
  return {made.parents, made.tokens, made.counts};
}

void draft_recycling_update(const Tensor& adjacency, const Tensor& ids, const Tensor& candidates) {
  const Checker check("draft_recycling_update");
  check_tensors(check, {{adjacency, "adjacency", ScalarType::Int, 2},
                        {ids, "ids", ScalarType::Long, 1},
                        {candidates, "candidates", ScalarType::Int, 2}});
  const int64_t V = adjacency.size(0), K = adjacency.size(1), R = ids.size(0);
  check.shape(candidates, "candidates", {R, K}, "[R, K], R of ids and K of adjacency");
  check_contiguous(check, adjacency, "adjacency");
  const Tensor dense_ids = torch::stable::contiguous(ids), dense_candidates = torch::stable::contiguous(candidates);
  const int64_t* values = core::data_of<int64_t>(dense_ids);
  for (int64_t r = 0; r < R; ++r) {
    if (values[r] < V) continue;
    check.fail("ids", "values below " + std::to_string(V) + " (V of adjacency)",
               std::to_string(values[r]) + " in row " + std::to_string(r));
  }
  run_draft_recycling_update_cpu({.ids = values,
                                  .candidates = core::data_of<int32_t>(dense_candidates),
                                  .num_rows = R,
                                  .num_successors = K,
                                  .adjacency = core::mutable_data_of<int32_t>(adjacency)});
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("draft_recycling", TORCH_BOX(&tokcore::speculative::draft_recycling));
  m.impl("draft_recycling_update", TORCH_BOX(&tokcore::speculative::draft_recycling_update));
}
