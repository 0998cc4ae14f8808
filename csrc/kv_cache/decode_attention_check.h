// Validation of decode_attention beyond that of the cache; shared by the backends.
#pragma once

#include "kv_cache/cache_check.h"
#include "tokcore/kv_cache/decode_attention.h"

namespace tokcore::kv_cache {

inline constexpr int64_t kMostTreeQueries = 256;

struct TreeArguments {
  const std::optional<Tensor>& ancestors;
  const std::optional<Tensor>& depths;
  const std::optional<Tensor>& counts;
};

// The nodes of trees as queries: shapes, then the params that they make.
inline DecodeTrees check_tree(const Checker& check, const TreeArguments& a, const Tensor& q) {
  const bool given = a.ancestors.has_value();
  const char* expected = given ? "a Tensor with tree_ancestors" : "None without tree_ancestors";
  const char* got = given ? "None" : "a Tensor";
  check.require(a.depths.has_value() == given, "tree_depths", expected, got);
  check.require(a.counts.has_value() == given, "tree_counts", expected, got);
  if (!given) return {};
  check.dtype(*a.ancestors, "tree_ancestors", ScalarType::Long);
  check.dtype(*a.depths, "tree_depths", ScalarType::Int);
  check.dtype(*a.counts, "tree_counts", ScalarType::Int);
  check.same_device(*a.ancestors, "tree_ancestors", q, "q");
  check.same_device(*a.depths, "tree_depths", q, "q");
  check.same_device(*a.counts, "tree_counts", q, "q");
  const int64_t B = q.size(0), M = q.size(1), words = (M + 63) / 64;
  check.require(M >= 1 && M <= kMostTreeQueries, "q", "M in [1, 256] with a tree", M);
  auto contiguous = [&](const Tensor& tensor, const char* name, const std::vector<int64_t>& shape,
                        const char* letters) {
    check.shape(tensor, name, shape, letters);
    if (tensor.is_contiguous()) return;
    check.fail(name, "a contiguous tensor", "strides " + core::shape_text(tensor.strides()));
  };
  contiguous(*a.ancestors, "tree_ancestors", {B, M, words}, "[B, M, ceil(M / 64)], B and M of q");
  contiguous(*a.depths, "tree_depths", {B, M}, "[B, M] of q");
  contiguous(*a.counts, "tree_counts", {B}, "B of q");
  return {static_cast<const uint64_t*>(a.ancestors->const_data_ptr()), core::data_of<int32_t>(*a.depths),
          core::data_of<int32_t>(*a.counts), words};
}

// Reads values: the tokens of the nodes stand in the cache.
inline void check_tree_counts(const Checker& check, const DecodeTrees& trees, const KvCacheParams& cache, int64_t M) {
  if (trees.counts == nullptr) return;
  for (int64_t b = 0; b < cache.num_sequences; ++b) {
    const int64_t most = min(M, cache.lengths[b]);
    if (trees.counts[b] >= 0 && trees.counts[b] <= most) continue;
    check.fail("tree_counts", "a value in [0, " + std::to_string(most) + "] (M, and tokens in the cache)",
               std::to_string(trees.counts[b]) + " of sequence " + std::to_string(b));
  }
}

inline void check_decode(const Checker& check, const Tensor& q, const CacheChecker& cache, double scale,
                         std::optional<double> softcap, std::optional<int64_t> window) {
  const Tensor& recent = cache.window();
  const KvCacheParams& params = cache.params();
  check.dtype(q, "q", recent.scalar_type());
  check.same_device(q, "q", recent, "recent.window_k");
  check.rank(q, "q", 4);
  const int64_t heads = q.size(2);
  check.shape(q, "q", {params.num_sequences, q.size(1), heads, params.head_dim}, "[B, M, H, D], B and D of the cache");
  check.require(
      params.num_heads > 0 && heads % params.num_heads == 0 && heads > 0, "q",
      [&] { return "H a positive multiple of " + std::to_string(params.num_heads) + " (Hkv)"; }, heads);
  check.require(std::isfinite(scale), "scale", "a finite value", scale);
  if (softcap.has_value()) {
    check.require(*softcap > 0.0 && std::isfinite(*softcap), "softcap", "a finite value > 0 or None", *softcap);
  }
  if (window.has_value()) check.require(*window >= 1, "window", "a value >= 1 or None", *window);
  check.unit_last_stride(q, "q");
}

struct DecodeTensors {
  Tensor out, lse;
};
inline DecodeTensors allocate_decode(const Tensor& q, bool return_lse) {
  const int64_t B = q.size(0), M = q.size(1), H = q.size(2);
  const std::vector<int64_t> lse_shape = return_lse ? std::vector<int64_t>{B, H, M} : std::vector<int64_t>{0};
  return {core::empty_like_on(q, {B, M, H, q.size(3)}, q.scalar_type()),
          core::empty_like_on(q, lse_shape, ScalarType::Float)};
}

inline DecodeAttentionParams decode_params(const Tensor& q, const CacheChecker& cache, const DecodeTrees& trees,
                                           double scale, std::optional<double> softcap, std::optional<int64_t> window,
                                           const DecodeTensors& made) {
  DecodeAttentionParams params = {};
  params.cache = cache.params();
  params.q = q.const_data_ptr();
  params.stride_q_sequence = q.stride(0);
  params.stride_q_query = q.stride(1);
  params.stride_q_head = q.stride(2);
  params.num_queries = q.size(1);
  params.num_q_heads = q.size(2);
  params.scale = static_cast<float>(scale);
  params.softcap = softcap.has_value() ? static_cast<float>(*softcap) : 0.0f;
  params.window = window.value_or(0);
  params.trees = trees;
  params.out = made.out.mutable_data_ptr();
  params.lse = made.lse.numel() > 0 ? core::mutable_data_of<float>(made.lse) : nullptr;
  return params;
}

}  // namespace tokcore::kv_cache
