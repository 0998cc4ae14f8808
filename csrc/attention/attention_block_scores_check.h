// Validation and output of attention_block_scores, shared by the backends: dtype, device, rank, shape, range, strides,
// in that order. python/tokcore/ops/attention_block_scores.py says the same of fake tensors.
#pragma once

#include "attention/block_sparse_attention_check.h"
#include "tokcore/attention/attention_block_scores.h"

namespace tokcore::attention {

inline BlockStatistic check_scores_arguments(const Checker& check, const Tensor& q, const Tensor& k, int64_t block_m,
                                             int64_t block_n, double scale, const std::string& stat, double threshold) {
  check_query_dtype(check, q);
  check_dtype_of_query(check, q, k, "k");
  check.same_device(k, "k", q, "q");
  check.rank(q, "q", 4);
  check.rank(k, "k", 4);
  check_heads(check, q, k);
  check_block(check, block_m, block_n);
  check_range(check, q, scale);
  const char* names[] = {"sum", "max", "count_above", "incoherence"};
  int chosen = 0;
  while (chosen < 4 && stat != names[chosen]) ++chosen;
  check.require(chosen < 4, "stat", "'sum' or 'max' or 'count_above' or 'incoherence'", "'" + stat + "'");
  check.require(threshold > 0.0 && threshold < 1.0, "threshold", "a value in (0, 1)", threshold);
  check.unit_last_stride(q, "q");
  check.unit_last_stride(k, "k");
  return static_cast<BlockStatistic>(chosen);
}

// The arguments of a valid call, and its output.
struct BlockScoresCall {
  AttentionBlockScoresParams params;
  Tensor scores;
};
inline BlockScoresCall prepare_scores(const Checker& check, const Tensor& q, const Tensor& k, int64_t block_m,
                                      int64_t block_n, double scale, bool causal, const std::string& stat,
                                      double threshold) {
  AttentionBlockScoresParams params = {};
  params.statistic = check_scores_arguments(check, q, k, block_m, block_n, scale, stat, threshold);
  params.dtype = core::to_dtype(q.scalar_type());
  params.shape = shape_of(q, k);
  params.q = heads_view(q);
  params.k = heads_view(k);
  params.block_m = block_m;
  params.block_n = block_n;
  params.scale = static_cast<float>(scale);
  params.causal = causal;
  params.threshold = static_cast<float>(threshold);
  const std::vector<int64_t> sizes = {q.size(0), q.size(1), ceil_div(q.size(2), block_m), ceil_div(k.size(2), block_n)};
  const Tensor scores = core::empty_like_on(q, sizes, ScalarType::Float);
  params.scores = core::mutable_data_of<float>(scores);
  return {params, scores};
}

}  // namespace tokcore::attention
