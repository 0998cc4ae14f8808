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
                                            std::string k_axis, std::string v_axis, bool rotate, bool return_lse) {
  const Checker check("decode_attention");
  const CacheArguments tensors{lengths,         window_starts,   recent, high,   low,
                               k_channel_scale, v_channel_scale, k_axis, v_axis, rotate};
  const CacheChecker cache(check, tensors);
  check_decode(check, q, cache, scale, softcap, window);
  const DecodeTrees trees = check_tree(check, {tree_ancestors, tree_depths, tree_counts}, q);
  cache.check_values();
  check_tree_counts(check, trees, cache.params(), q.size(1));

  const DecodeTensors made = allocate_decode(q, return_lse);
  if (made.out.numel() > 0) {
    const DecodeAttentionParams params = decode_params(q, cache, trees, scale, softcap, window, made);
    run_decode_attention_cpu(params, core::torch_threads());
  }
  return {made.out, made.lse};
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("decode_attention", TORCH_BOX(&tokcore::kv_cache::decode_attention));
}
