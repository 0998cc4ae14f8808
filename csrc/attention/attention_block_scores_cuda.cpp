// Torch-facing CUDA entry of attention_block_scores. Nothing waits for the GPU.
#include <torch/csrc/stable/library.h>

#include "attention/attention_block_scores_check.h"
#include "core/cuda_scope.h"
#include "tokcore/attention/attention_cuda.h"

namespace tokcore::attention {
namespace {

Tensor attention_block_scores(const Tensor& q, const Tensor& k, int64_t block_m, int64_t block_n, double scale,
                              bool causal, std::string stat, double threshold) {
  const Checker check("attention_block_scores");
  const BlockScoresCall call = prepare_scores(check, q, k, block_m, block_n, scale, causal, stat, threshold);
  const core::CudaScope scope("attention_block_scores", q);
  if (call.scores.numel() > 0) {
    const CudaMachine machine = scope.machine();
    const Tensor workspace = core::workspace_like(q, attention_block_scores_workspace_cuda(call.params, machine));
    run_attention_block_scores_cuda(call.params, {machine, workspace.mutable_data_ptr(), scope.stream()});
  }
  return call.scores;
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("attention_block_scores", TORCH_BOX(&tokcore::attention::attention_block_scores));
}
