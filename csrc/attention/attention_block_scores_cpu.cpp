// Torch-facing CPU entry of attention_block_scores.
#include <torch/csrc/stable/library.h>

#include "attention/attention_block_scores_check.h"
#include "core/threads.h"

namespace tokcore::attention {
namespace {

Tensor attention_block_scores(const Tensor& q, const Tensor& k, int64_t block_m, int64_t block_n, double scale,
                              bool causal, std::string stat, double threshold) {
  const Checker check("attention_block_scores");
  const BlockStatistic statistic = check_scores_arguments(check, q, k, block_m, block_n, scale, stat, threshold);
  const std::vector<int64_t> sizes = {q.size(0), q.size(1), ceil_div(q.size(2), block_m), ceil_div(k.size(2), block_n)};
  const Tensor scores = core::empty_like_on(q, sizes, ScalarType::Float);
  if (scores.numel() > 0) {
    AttentionBlockScoresParams params = {};
    params.dtype = core::to_dtype(q.scalar_type());
    params.shape = shape_of(q, k);
    params.q = heads_view(q);
    params.k = heads_view(k);
    params.block_m = block_m;
    params.block_n = block_n;
    params.scale = static_cast<float>(scale);
    params.causal = causal;
    params.statistic = statistic;
    params.threshold = static_cast<float>(threshold);
    params.scores = core::mutable_data_of<float>(scores);
    run_attention_block_scores_cpu(params, core::torch_threads());
  }
  return scores;
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("attention_block_scores", TORCH_BOX(&tokcore::attention::attention_block_scores));
}
