// Torch-facing CUDA entry of draft_ngram. Values are not looked at before: that would wait for the GPU.
#include <torch/csrc/stable/library.h>

#include "core/cuda_scope.h"
#include "speculative/draft_ngram_check.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor> draft_ngram(const Tensor& history, const Tensor& lengths, const Tensor& budgets,
                                               int64_t max_nodes, int64_t longest, int64_t shortest,
                                               int64_t max_depth) {
  const core::CudaScope scope("draft_ngram", history);
  const NgramCall call(history, lengths, budgets, max_nodes, longest, shortest, max_depth);
  run_draft_ngram_cuda(call.params, scope.stream());
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("draft_ngram", TORCH_BOX(&tokcore::speculative::draft_ngram)); }
