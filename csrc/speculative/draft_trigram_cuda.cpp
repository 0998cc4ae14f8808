// Torch-facing CUDA entries of draft_trigram and draft_trigram_update. Values are not looked at before: that would wait
// for the GPU.
#include <torch/csrc/stable/library.h>

#include "core/cuda_scope.h"
#include "speculative/draft_trigram_check.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> draft_trigram(const Tensor& keys, const Tensor& successors,
                                                         const Tensor& probs, const Tensor& previous,
                                                         const Tensor& roots, const Tensor& budgets, int64_t vocab_size,
                                                         int64_t max_nodes, int64_t simulations, int64_t max_depth,
                                                         double exploration) {
  const core::CudaScope scope("draft_trigram", keys);
  const TrigramCall call(
      {keys, successors, probs, previous, roots, budgets, vocab_size, max_nodes, simulations, max_depth, exploration});
  const Tensor workspace = core::workspace_like(keys, draft_trigram_workspace_cuda(call.params));
  run_draft_trigram_cuda(call.params, workspace.mutable_data_ptr(), scope.stream());
  return call.result();
}

void draft_trigram_update(const Tensor& keys, const Tensor& successors, const Tensor& probs, const Tensor& contexts,
                          const Tensor& candidates, const Tensor& candidate_probs) {
  const core::CudaScope scope("draft_trigram_update", keys);
  const TrigramUpdateCall call(keys, successors, probs, contexts, candidates, candidate_probs);
  check_row_count(call.check, "contexts", call.params.num_rows);
  const Tensor workspace = core::workspace_like(keys, draft_trigram_update_workspace_cuda(call.params));
  run_draft_trigram_update_cuda(call.params, workspace.mutable_data_ptr(), scope.stream());
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("draft_trigram", TORCH_BOX(&tokcore::speculative::draft_trigram));
  m.impl("draft_trigram_update", TORCH_BOX(&tokcore::speculative::draft_trigram_update));
}
