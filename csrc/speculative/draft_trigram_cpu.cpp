// Torch-facing CPU entries of draft_trigram and draft_trigram_update.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_trigram_check.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> draft_trigram(const Tensor& keys, const Tensor& successors,
                                                         const Tensor& probs, const Tensor& previous,
                                                         const Tensor& roots, const Tensor& budgets, int64_t vocab_size,
                                                         int64_t max_nodes, int64_t simulations, int64_t max_depth,
                                                         double exploration) {
  TrigramCall call(
      {keys, successors, probs, previous, roots, budgets, vocab_size, max_nodes, simulations, max_depth, exploration});
  DraftTrigramParams& params = call.params;
  const int64_t B = params.num_requests;
  check_values(call.check, "roots", params.roots, B, 0, vocab_size - 1, "vocab_size");
  check_values(call.check, "previous", params.previous, B, -1, vocab_size - 1, "vocab_size");
  check_values(call.check, "budgets", params.budgets, B, 0, max_nodes, "max_nodes");
  auto plan = [&](cpu::Arena& arena) {
    params.edges = arena.take<TrigramEdge>(B * max_nodes * params.table.num_successors);
    params.slots = arena.take<int64_t>(B * max_nodes);
  };
  cpu::Arena counting;
  plan(counting);
  const cpu::Scratch scratch(counting.used());
  cpu::Arena arena(scratch.data());
  plan(arena);
  run_draft_trigram_cpu(params, core::torch_threads());
  return call.result();
}

void draft_trigram_update(const Tensor& keys, const Tensor& successors, const Tensor& probs, const Tensor& contexts,
                          const Tensor& candidates, const Tensor& candidate_probs) {
  const TrigramUpdateCall call(keys, successors, probs, contexts, candidates, candidate_probs);
  const int64_t* pairs = call.params.contexts;
  for (int64_t i = 0; i < 2 * call.params.num_rows; ++i) {
    if (pairs[i] < kMostTrigramTokens) continue;
    call.check.fail("contexts", "values below 2147483648",
                    std::to_string(pairs[i]) + " in row " + std::to_string(i / 2));
  }
  run_draft_trigram_update_cpu(call.params);
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("draft_trigram", TORCH_BOX(&tokcore::speculative::draft_trigram));
  m.impl("draft_trigram_update", TORCH_BOX(&tokcore::speculative::draft_trigram_update));
}
