// Torch-facing CPU entries of draft_recycling and draft_recycling_update.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_recycling_check.h"

namespace tokcore::speculative {
namespace {

void check_template(const Checker& check, const DraftRecyclingParams& p) {
  for (int64_t node = 0; node < p.template_nodes; ++node) {
    const bool is_root = node == 0;
    const bool fits = is_root ? p.parents[0] == -1 : p.parents[node] >= 0 && p.parents[node] < node;
    if (!fits) {
      check.fail("template_parents", is_root ? "-1 at node 0" : "a lower node's number, at least 0",
                 std::to_string(p.parents[node]) + " at node " + std::to_string(node));
    }
    if (is_root || (p.ranks[node] >= 0 && p.ranks[node] < p.num_successors)) continue;
    check.fail("template_ranks", interval(0, p.num_successors - 1, "K of adjacency"),
               std::to_string(p.ranks[node]) + " at node " + std::to_string(node));
  }
}

std::tuple<Tensor, Tensor, Tensor> draft_recycling(const Tensor& adjacency, const Tensor& roots, const Tensor& budgets,
                                                   const Tensor& template_parents, const Tensor& template_ranks) {
  const RecyclingCall call(adjacency, roots, budgets, template_parents, template_ranks);
  const DraftRecyclingParams& params = call.params;
  check_template(call.check, params);
  check_values(call.check, "roots", params.roots, params.num_requests, 0, params.vocab_size - 1, "V of adjacency");
  check_values(call.check, "budgets", params.budgets, params.num_requests, 0, params.template_nodes,
               "nodes of the template");
  run_draft_recycling_cpu(params, core::torch_threads());
  return call.result();
}

void draft_recycling_update(const Tensor& adjacency, const Tensor& ids, const Tensor& candidates) {
  const RecyclingUpdateCall call(adjacency, ids, candidates);
  const DraftRecyclingUpdateParams& params = call.params;
  for (int64_t r = 0; r < params.num_rows; ++r) {
    if (params.ids[r] < params.vocab_size) continue;
    call.check.fail("ids", "values below " + std::to_string(params.vocab_size) + " (V of adjacency)",
                    std::to_string(params.ids[r]) + " in row " + std::to_string(r));
  }
  run_draft_recycling_update_cpu(params);
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("draft_recycling", TORCH_BOX(&tokcore::speculative::draft_recycling));
  m.impl("draft_recycling_update", TORCH_BOX(&tokcore::speculative::draft_recycling_update));
}
