// Torch-facing CUDA entry of kv_retier. Nothing waits for the GPU.
#include "tokcore/kv_cache/kv_retier_cuda.h"

#include <torch/csrc/stable/library.h>

#include "kv_cache/cache_check_cuda.h"
#include "kv_cache/kv_retier_check.h"

namespace tokcore::kv_cache {
namespace {

void kv_retier(const Tensor& scores, const Tensor& high_pages, const Tensor& lengths, const Tensor& window_starts,
               std::vector<Tensor> recent, std::vector<Tensor> high, std::vector<Tensor> low,
               std::optional<Tensor> k_channel_scale, std::optional<Tensor> v_channel_scale, std::string k_axis,
               std::string v_axis, bool rotate) {
  const Checker check("kv_retier");
  const CacheArguments tensors{lengths,         window_starts,   recent, high,   low,
                               k_channel_scale, v_channel_scale, k_axis, v_axis, rotate};
  const CacheChecker cache(check, tensors);
  check_retier_tensors(check, tensors, cache, scores, high_pages);
  check_cache_is_aligned(check, tensors);
  check.require(scores.size(2) <= kMostTokens, "scores", "N <= 1073741824 on CUDA", scores.size(2));
  if (scores.numel() == 0) return;
  const core::CudaScope scope("kv_retier", scores);
  const Tensor dense_high = torch::stable::contiguous(high_pages);
  const KvRetierParams params = retier_params(cache.params(), scores, dense_high);
  const Tensor workspace = core::workspace_like(scores, kv_retier_workspace_cuda(params));
  run_kv_retier_cuda(params, workspace.mutable_data_ptr(), scope.stream());
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("kv_retier", TORCH_BOX(&tokcore::kv_cache::kv_retier)); }
