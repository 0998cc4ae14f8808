// Torch-facing CPU entry of attention_block_scores.
#include <torch/csrc/stable/library.h>

#include "attention/attention_block_scores_check.h"
#include "core/threads.h"

namespace tokcore::attention {
namespace {

Tensor attention_block_scores(const Tensor& q, const Tensor& k, int64_t block_m, int64_t block_n, double scale,
                              bool causal, std::string stat, double threshold) {
  const Checker check("attention_block_scores");
  const BlockScoresCall call = prepare_scores(check, q, k, block_m, block_n, scale, causal, stat, threshold);
  if (call.scores.numel() > 0) run_attention_block_scores_cpu(call.params, core::torch_threads());
  return call.scores;
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("attention_block_scores", TORCH_BOX(&tokcore::attention::attention_block_scores));
}
