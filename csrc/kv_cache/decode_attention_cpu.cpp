// Torch-facing CPU entry of decode_attention.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "kv_cache/decode_attention_check.h"

namespace tokcore::kv_cache {
namespace {

std::tuple<Tensor, Tensor> decode_attention(const Tensor& q, const Tensor& lengths, const Tensor& window_starts,
                                            std::vector<Tensor> recent, std::vector<Tensor> high,
                                            std::vector<Tensor> low, std::optional<Tensor> k_channel_scale,
                                            std::optional<Tensor> v_channel_scale, std::optional<Tensor> tree_ancestors,
                                            std::optional<Tensor> tree_depths, std::optional<Tensor> tree_counts,
                                            double scale, std::optional<double> softcap, std::optional<int64_t> window,
                                            std::string k_axis, bool rotate, bool return_lse) {
  const Checker check("decode_attention");
  const CacheArguments tensors{lengths,         window_starts,   recent, high,  low,
                               k_channel_scale, v_channel_scale, k_axis, rotate};
  const CacheChecker cache(check, tensors);
  check_decode(check, q, cache, scale, softcap, window);
  const DecodeTrees trees = check_tree(check, {tree_ancestors, tree_depths, tree_counts}, q);
  cache.check_values();
  check_tree_counts(check, trees, cache.params(), q.size(1));

  const int64_t B = q.size(0), M = q.size(1), H = q.size(2), D = q.size(3);
  const Tensor out = core::empty_like_on(q, {B, M, H, D}, q.scalar_type());
  const Tensor lse =
      core::empty_like_on(q, return_lse ? std::vector<int64_t>{B, H, M} : std::vector<int64_t>{0}, ScalarType::Float);
  if (out.numel() > 0) {
    DecodeAttentionParams params = {};
    params.cache = cache.params();
    params.q = q.const_data_ptr();
    params.stride_q_sequence = q.stride(0);
    params.stride_q_query = q.stride(1);
    params.stride_q_head = q.stride(2);
    params.num_queries = M;
    params.num_q_heads = H;
    params.scale = static_cast<float>(scale);
    params.softcap = softcap.has_value() ? static_cast<float>(*softcap) : 0.0f;
    params.window = window.value_or(0);
    params.trees = trees;
    params.out = out.mutable_data_ptr();
    params.lse = return_lse ? core::mutable_data_of<float>(lse) : nullptr;
    run_decode_attention_cpu(params, core::torch_threads());
  }
  return {out, lse};
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("decode_attention", TORCH_BOX(&tokcore::kv_cache::decode_attention));
}
