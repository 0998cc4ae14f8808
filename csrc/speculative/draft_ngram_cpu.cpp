// Torch-facing CPU entry of draft_ngram.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_ngram_check.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor> draft_ngram(const Tensor& history, const Tensor& lengths, const Tensor& budgets,
                                               int64_t max_nodes, int64_t longest, int64_t shortest,
                                               int64_t max_depth) {
  const NgramCall call(history, lengths, budgets, max_nodes, longest, shortest, max_depth);
  const DraftNgramParams& params = call.params;
  check_values(call.check, "lengths", params.lengths, params.num_requests, 0, params.row_length, "L of history");
  check_values(call.check, "budgets", params.budgets, params.num_requests, 0, max_nodes, "max_nodes");
  run_draft_ngram_cpu(params, core::torch_threads());
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("draft_ngram", TORCH_BOX(&tokcore::speculative::draft_ngram)); }
