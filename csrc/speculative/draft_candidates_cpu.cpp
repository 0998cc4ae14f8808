// Torch-facing CPU entry of draft_candidates.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_candidates_check.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor> draft_candidates(const Tensor& logits, int64_t k, double temperature, bool probs) {
  const CandidatesCall call(logits, k, temperature, probs);
  run_draft_candidates_cpu(call.params, core::torch_threads());
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("draft_candidates", TORCH_BOX(&tokcore::speculative::draft_candidates));
}
