// Torch-facing CPU entry of draft_heap.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_check.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/speculative/draft_heap.h"

namespace tokcore::speculative {
namespace {

DraftValue to_value(const Checker& check, const std::string& value) {
  if (value == "residual") return DraftValue::kResidual;
  if (value == "joint") return DraftValue::kJoint;
  check.fail("value", "'residual' or 'joint'", "'" + value + "'");
}

// Asked nodes hang together, and no candidate is asked at twice.
void check_asked(const Checker& check, const DraftHeapParams& p) {
  for (int64_t b = 0; b < p.num_requests; ++b) {
    std::vector<bool> taken(static_cast<size_t>(p.num_asked * p.num_candidates));
    for (int64_t node = 1; node < p.asked[b]; ++node) {
      const int64_t parent = p.parents[b * p.num_asked + node], rank = p.ranks[b * p.num_asked + node];
      const std::string where = " at node " + std::to_string(node) + " of request " + std::to_string(b);
      if (parent < 0 || parent >= node) {
        check.fail("asked_parents", "a lower node's number, at least 0", std::to_string(parent) + where);
      }
      if (rank < 0 || rank >= p.num_candidates) {
        check.fail("asked_ranks", interval(0, p.num_candidates - 1, "K of candidates"), std::to_string(rank) + where);
      }
      const size_t cell = static_cast<size_t>(parent * p.num_candidates + rank);
      if (taken[cell]) check.fail("asked_ranks", "a candidate once", std::to_string(rank) + " again" + where);
      taken[cell] = true;
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> draft_heap(const Tensor& candidates, const Tensor& probs,
                                                              const Tensor& asked_parents, const Tensor& asked_ranks,
                                                              const Tensor& asked_counts, const Tensor& roots,
                                                              const Tensor& budgets, int64_t max_nodes,
                                                              std::string value, double threshold) {
  const Checker check("draft_heap");
  check_tensors(check, {{candidates, "candidates", ScalarType::Int, 3},
                        {probs, "probs", ScalarType::Float, 3},
                        {asked_parents, "asked_parents", ScalarType::Int, 2},
                        {asked_ranks, "asked_ranks", ScalarType::Int, 2},
                        {asked_counts, "asked_counts", ScalarType::Int, 1},
                        {roots, "roots", ScalarType::Long, 1},
                        {budgets, "budgets", ScalarType::Int, 1}});
  const int64_t B = candidates.size(0), M = candidates.size(1), K = candidates.size(2);
  check.shape(probs, "probs", {B, M, K}, "shape of candidates");
  check.shape(asked_parents, "asked_parents", {B, M}, "[B, M] of candidates");
  check.shape(asked_ranks, "asked_ranks", {B, M}, "[B, M] of candidates");
  check.shape(asked_counts, "asked_counts", {B}, "B of candidates");
  check.shape(roots, "roots", {B}, "B of candidates");
  check.shape(budgets, "budgets", {B}, "B of candidates");
  check_range(check, "candidates", M, 1, kMostDraftNodes, "M, asked nodes");
  check_range(check, "candidates", K, 1, kMostHeapCandidates, "K");
  check_max_nodes(check, max_nodes);
  const DraftValue kind = to_value(check, value);
  check.require(threshold >= 0.0 && threshold <= 1.0, "threshold", "a value in [0, 1]", threshold);

  const Tensor dense[] = {torch::stable::contiguous(candidates),    torch::stable::contiguous(probs),
                          torch::stable::contiguous(asked_parents), torch::stable::contiguous(asked_ranks),
                          torch::stable::contiguous(asked_counts),  torch::stable::contiguous(roots),
                          torch::stable::contiguous(budgets)};
  const TreeTensors made = empty_trees(candidates, B, max_nodes);
  const Tensor joint = core::empty_like_on(candidates, {B, max_nodes}, ScalarType::Float);
  const Tensor sources = core::empty_like_on(candidates, {B, max_nodes}, ScalarType::Int);
  const cpu::Scratch lookup(static_cast<size_t>(B * M * K) * sizeof(int16_t) + 1);
  const DraftHeapParams params = {.candidates = core::data_of<int32_t>(dense[0]),
                                  .probs = core::data_of<float>(dense[1]),
                                  .parents = core::data_of<int32_t>(dense[2]),
                                  .ranks = core::data_of<int32_t>(dense[3]),
                                  .asked = core::data_of<int32_t>(dense[4]),
                                  .roots = core::data_of<int64_t>(dense[5]),
                                  .budgets = core::data_of<int32_t>(dense[6]),
                                  .num_requests = B,
                                  .num_asked = M,
                                  .num_candidates = K,
                                  .value = kind,
                                  .threshold = threshold,
                                  .trees = made.trees,
                                  .joint = core::mutable_data_of<float>(joint),
                                  .sources = core::mutable_data_of<int32_t>(sources),
                                  .lookup = reinterpret_cast<int16_t*>(lookup.data())};
  check_values(check, "asked_counts", params.asked, B, 0, M, "M of candidates");
  check_values(check, "budgets", params.budgets, B, 0, max_nodes, "max_nodes");
  check_asked(check, params);
  run_draft_heap_cpu(params, core::torch_threads());
  return {made.parents, made.tokens, made.counts, joint, sources};
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("draft_heap", TORCH_BOX(&tokcore::speculative::draft_heap)); }
