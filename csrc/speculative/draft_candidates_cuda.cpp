// Torch-facing CUDA entry of draft_candidates. Values are not looked at before: that would wait for the GPU.
#include <torch/csrc/stable/library.h>

#include "core/cuda_scope.h"
#include "speculative/draft_candidates_check.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor> draft_candidates(const Tensor& logits, int64_t k, double temperature, bool probs) {
  const core::CudaScope scope("draft_candidates", logits);
  const CandidatesCall call(logits, k, temperature, probs);
  run_draft_candidates_cuda(call.params, scope.stream());
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("draft_candidates", TORCH_BOX(&tokcore::speculative::draft_candidates));
}
