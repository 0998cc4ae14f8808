// Torch-facing CUDA entries of draft_recycling and draft_recycling_update. Values are not looked at before: that would
// wait for the GPU.
#include <torch/csrc/stable/library.h>

#include "core/cuda_scope.h"
#include "speculative/draft_recycling_check.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor> draft_recycling(const Tensor& adjacency, const Tensor& roots, const Tensor& budgets,
                                                   const Tensor& template_parents, const Tensor& template_ranks) {
  const core::CudaScope scope("draft_recycling", adjacency);
  const RecyclingCall call(adjacency, roots, budgets, template_parents, template_ranks);
  run_draft_recycling_cuda(call.params, scope.stream());
  return call.result();
}

void draft_recycling_update(const Tensor& adjacency, const Tensor& ids, const Tensor& candidates) {
  const core::CudaScope scope("draft_recycling_update", adjacency);
  const RecyclingUpdateCall call(adjacency, ids, candidates);
  check_row_count(call.check, "ids", call.params.num_rows);
  const Tensor workspace = core::workspace_like(adjacency, draft_recycling_update_workspace_cuda(call.params));
  run_draft_recycling_update_cuda(call.params, workspace.mutable_data_ptr(), scope.stream());
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("draft_recycling", TORCH_BOX(&tokcore::speculative::draft_recycling));
  m.impl("draft_recycling_update", TORCH_BOX(&tokcore::speculative::draft_recycling_update));
}
