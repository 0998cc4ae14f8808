// Torch-facing CPU entry of draft_ngram.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_ngram.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor> draft_ngram(const Tensor& history, const Tensor& lengths, const Tensor& budgets,
                                               int64_t max_nodes, int64_t longest, int64_t shortest,
                                               int64_t max_depth) {
  const Checker check("draft_ngram");
  check_tensors(check, {{history, "history", ScalarType::Long, 2},
                        {lengths, "lengths", ScalarType::Int, 1},
                        {budgets, "budgets", ScalarType::Int, 1}});
  const int64_t B = history.size(0), L = history.size(1);
  check.shape(lengths, "lengths", {B}, "B of history");
  check.shape(budgets, "budgets", {B}, "B of history");
  check_max_nodes(check, max_nodes);
  check_range(check, "longest", longest, 1, 64, "tokens");
  check_range(check, "shortest", shortest, 1, longest, "longest");
  check_range(check, "max_depth", max_depth, 1, kMostDraftNodes, "tokens");
  const Tensor dense_history = torch::stable::contiguous(history);
  const Tensor dense_lengths = torch::stable::contiguous(lengths);
  const Tensor dense_budgets = torch::stable::contiguous(budgets);
  const TreeTensors made = empty_trees(history, B, max_nodes);
  const DraftNgramParams params = {.history = core::data_of<int64_t>(dense_history),
                                   .lengths = core::data_of<int32_t>(dense_lengths),
                                   .budgets = core::data_of<int32_t>(dense_budgets),
                                   .num_requests = B,
                                   .row_length = L,
                                   .longest = longest,
                                   .shortest = shortest,
                                   .max_depth = max_depth,
                                   .trees = made.trees};
  check_values(check, "lengths", params.lengths, B, 0, L, "L of history");
  check_values(check, "budgets", params.budgets, B, 0, max_nodes, "max_nodes");
  run_draft_ngram_cpu(params, core::torch_threads());
  return {made.parents, made.tokens, made.counts};
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("draft_ngram", TORCH_BOX(&tokcore::speculative::draft_ngram)); }
