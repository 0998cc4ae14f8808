// Validation of kv_retier's tensors and the params struct they make; shared by the backends.
#pragma once

#include "kv_cache/cache_check.h"
#include "tokcore/kv_cache/kv_retier.h"

namespace tokcore::kv_cache {

inline void check_retier_tensors(const Checker& check, const CacheArguments& a, const CacheChecker& cache,
                                 const Tensor& scores, const Tensor& high_pages) {
  const KvCacheParams& layer = cache.params();
  check.require(!a.high.empty(), "high", "a tier", "none");
  check.require(!a.low.empty(), "low", "a tier", "none");
  check.require(layer.tiers[kHighTier].positions != nullptr || a.high[kKPages].numel() == 0, "high.positions",
                "a list of positions", "an empty one");
  check.require(layer.tiers[kLowTier].positions != nullptr || a.low[kKPages].numel() == 0, "low.positions",
                "a list of positions", "an empty one");
  check.dtype(scores, "scores", ScalarType::Float);
  check.dtype(high_pages, "high_pages", ScalarType::Int);
  check.same_device(scores, "scores", cache.window(), "recent.window_k");
  check.same_device(high_pages, "high_pages", cache.window(), "recent.window_k");
  check.rank(scores, "scores", 3);
  check.shape(scores, "scores", {layer.num_sequences, layer.num_heads, scores.size(2)}, "[B, Hkv, N]");
  check.shape(high_pages, "high_pages", {layer.num_sequences}, "B");
  check.unit_last_stride(scores, "scores");
}

inline KvRetierParams retier_params(const KvCacheParams& layer, const Tensor& scores, const Tensor& dense_high_pages) {
  KvRetierParams params = {};
  params.cache = layer;
  params.scores = core::data_of<float>(scores);
  params.stride_scores_sequence = scores.stride(0);
  params.stride_scores_head = scores.stride(1);
  params.num_positions = scores.size(2);
  params.high_pages = core::data_of<int32_t>(dense_high_pages);
  return params;
}

}  // namespace tokcore::kv_cache
