// Torch-facing CUDA entry of kv_append. Nothing waits for the GPU.
#include "tokcore/kv_cache/kv_append_cuda.h"

#include <torch/csrc/stable/library.h>

#include "kv_cache/cache_check_cuda.h"
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
  check_cache_is_aligned(check, tensors);
  check.require(k.size(0) <= kMostTokens, "k", "T <= 1073741824 on CUDA", k.size(0));
  if (k.size(0) == 0 || cache.params().num_sequences == 0) return;
  const core::CudaScope scope("kv_append", k);
  const Tensor dense_slots = torch::stable::contiguous(slot_mapping);
  KvAppendCudaParams params = {};
  params.cache = cache.params();
  params.cache.page_size = page_size;
  params.k = k.const_data_ptr();
  params.v = v.const_data_ptr();
  params.stride_k_token = k.stride(0);
  params.stride_k_head = k.stride(1);
  params.stride_v_token = v.stride(0);
  params.stride_v_head = v.stride(1);
  params.slots = core::data_of<int64_t>(dense_slots);
  params.num_tokens = k.size(0);
  params.capacity = capacity;
  params.residual = residual;
  const Tensor workspace = core::workspace_like(k, kv_append_workspace_cuda(params));
  run_kv_append_cuda(params, workspace.mutable_data_ptr(), scope.stream());
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("kv_append", TORCH_BOX(&tokcore::kv_cache::kv_append)); }
