// Torch-facing CPU entry of kv_append.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "kv_cache/kv_append_check.h"

namespace tokcore::kv_cache {
namespace {

void kv_append(const Tensor& k, const Tensor& v, const Tensor& slot_mapping, const Tensor& lengths,
               const Tensor& window_starts, std::vector<Tensor> recent, std::vector<Tensor> high,
               std::vector<Tensor> low, std::optional<Tensor> k_channel_scale, std::optional<Tensor> v_channel_scale,
               int64_t capacity, int64_t residual, int64_t page_size, std::string k_axis, std::string v_axis,
               bool rotate) {
  const Checker check("kv_append");
  const CacheArguments tensors{lengths,         window_starts,   recent, high,   low,
                               k_channel_scale, v_channel_scale, k_axis, v_axis, rotate};
  const CacheChecker cache(check, tensors);
  const AppendArguments a{k, v, slot_mapping, capacity, residual, page_size};
  check_append_tensors(check, a, cache.window());
  const int64_t found = cache.params().page_size;
  check.require(
      found == 0 || found == page_size, "page_size", [&] { return std::to_string(found) + " of the tiers"; },
      page_size);
  cache.check_values();
  KvAppendParams params = {};
  params.cache = cache.params();
  params.cache.page_size = page_size;
  const Tensor dense_slots = torch::stable::contiguous(slot_mapping);
  const AppendPlan plan(check, cache, a, core::data_of<int64_t>(dense_slots));
  if (plan.rows().empty()) return;
  if (k_channel_scale.has_value()) {
    check_channel_scale_values(check, "k_channel_scale", params.cache.k_channel_scale, k.size(1), k.size(2));
  }
  if (v_channel_scale.has_value()) {
    check_channel_scale_values(check, "v_channel_scale", params.cache.v_channel_scale, k.size(1), k.size(2));
  }
  params.k = k.const_data_ptr();
  params.v = v.const_data_ptr();
  params.stride_k_token = k.stride(0);
  params.stride_k_head = k.stride(1);
  params.stride_v_token = v.stride(0);
  params.stride_v_head = v.stride(1);
  params.rows = plan.rows().data();
  params.num_rows = static_cast<int64_t>(plan.rows().size());
  run_kv_append_cpu(params, core::torch_threads());
  plan.commit();
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("kv_append", TORCH_BOX(&tokcore::kv_cache::kv_append)); }
