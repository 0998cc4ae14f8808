// Torch-facing CPU entries of draft_trigram and draft_trigram_update.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_check.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/speculative/draft_trigram.h"

namespace tokcore::speculative {
namespace {

void check_table(const Checker& check, const Tensor& keys, const Tensor& successors, const Tensor& probs) {
  const int64_t S = keys.size(0), K = successors.size(1);
  check.require(S > 0 && (S & (S - 1)) == 0, "keys", "S a power of two", S);
  check.shape(successors, "successors", {S, K}, "[S, K], S of keys");
  check.require(K >= 1, "successors", "K >= 1", K);
  check.shape(probs, "probs", {S, K}, "[S, K] of successors");
}

TrigramTable table_of(const Checker& check, const Tensor& keys, const Tensor& successors, const Tensor& probs) {
  check_contiguous(check, keys, "keys");
  check_contiguous(check, successors, "successors");
  check_contiguous(check, probs, "probs");
  return {core::mutable_data_of<int64_t>(keys), core::mutable_data_of<int32_t>(successors),
          core::mutable_data_of<float>(probs), keys.size(0), successors.size(1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> draft_trigram(const Tensor& keys, const Tensor& successors,
                                                         const Tensor& probs, const Tensor& previous,
                                                         const Tensor& roots, const Tensor& budgets, int64_t vocab_size,
                                                         int64_t max_nodes, int64_t simulations, int64_t max_depth,
                                                         double exploration) {
  const Checker check("draft_trigram");
  check_tensors(check, {{keys, "keys", ScalarType::Long, 1},
                        {successors, "successors", ScalarType::Int, 2},
                        {probs, "probs", ScalarType::Float, 2},
                        {previous, "previous", ScalarType::Long, 1},
                        {roots, "roots", ScalarType::Long, 1},
                        {budgets, "budgets", ScalarType::Int, 1}});
  const int64_t B = roots.size(0);
  check_table(check, keys, successors, probs);
  check.shape(previous, "previous", {B}, "B of roots");
  check.shape(budgets, "budgets", {B}, "B of roots");
  check_range(check, "vocab_size", vocab_size, 1, (int64_t{1} << 31) - 1, "tokens");
  check_max_nodes(check, max_nodes);
  check_range(check, "simulations", simulations, 0, int64_t{1} << 20, "simulations");
  check_range(check, "max_depth", max_depth, 1, 64, "tokens");
  check.require(exploration >= 0.0 && std::isfinite(exploration), "exploration", "a finite value >= 0", exploration);
  const TrigramTable table = table_of(check, keys, successors, probs);

  const Tensor dense[] = {torch::stable::contiguous(previous), torch::stable::contiguous(roots),
                          torch::stable::contiguous(budgets)};
  const TreeTensors made = empty_trees(roots, B, max_nodes);
  const Tensor joint = core::empty_like_on(roots, {B, max_nodes}, ScalarType::Float);
  DraftTrigramParams params = {.table = table,
                               .previous = core::data_of<int64_t>(dense[0]),
                               .roots = core::data_of<int64_t>(dense[1]),
                               .budgets = core::data_of<int32_t>(dense[2]),
                               .num_requests = B,
                               .vocab_size = vocab_size,
                               .simulations = simulations,
                               .max_depth = max_depth,
                               .exploration = exploration,
                               .trees = made.trees,
                               .joint = core::mutable_data_of<float>(joint),
                               .edges = nullptr,
                               .slots = nullptr};
  check_values(check, "roots", params.roots, B, 0, vocab_size - 1, "vocab_size");
  check_values(check, "previous", params.previous, B, -1, vocab_size - 1, "vocab_size");
  check_values(check, "budgets", params.budgets, B, 0, max_nodes, "max_nodes");
  auto plan = [&](cpu::Arena& arena) {
    params.edges = arena.take<TrigramEdge>(B * max_nodes * table.num_successors);
    params.slots = arena.take<int64_t>(B * max_nodes);
  };
  cpu::Arena counting;
  plan(counting);
  const cpu::Scratch scratch(counting.used());
  cpu::Arena arena(scratch.data());
  plan(arena);
  run_draft_trigram_cpu(params, core::torch_threads());
  return {made.parents, made.tokens, made.counts, joint};
}

void draft_trigram_update(const Tensor& keys, const Tensor& successors, const Tensor& probs, const Tensor& contexts,
                          const Tensor& candidates, const Tensor& candidate_probs) {
  const Checker check("draft_trigram_update");
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
  const TrigramTable table = table_of(check, keys, successors, probs);
  const Tensor dense_contexts = torch::stable::contiguous(contexts);
  const Tensor dense_candidates = torch::stable::contiguous(candidates);
  const Tensor dense_probs = torch::stable::contiguous(candidate_probs);
  const int64_t* pairs = core::data_of<int64_t>(dense_contexts);
  for (int64_t i = 0; i < 2 * R; ++i) {
    if (pairs[i] < int64_t{1} << 31) continue;
    check.fail("contexts", "values below 2147483648", std::to_string(pairs[i]) + " in row " + std::to_string(i / 2));
  }
  run_draft_trigram_update_cpu({.table = table,
                                .contexts = pairs,
                                .candidates = core::data_of<int32_t>(dense_candidates),
                                .probs = core::data_of<float>(dense_probs),
                                .num_rows = R});
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("draft_trigram", TORCH_BOX(&tokcore::speculative::draft_trigram));
  m.impl("draft_trigram_update", TORCH_BOX(&tokcore::speculative::draft_trigram_update));
}
