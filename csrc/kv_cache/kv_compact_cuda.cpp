// Torch-facing CUDA entry of kv_compact. Nothing waits for the GPU.
#include "tokcore/kv_cache/kv_compact_cuda.h"

#include <torch/csrc/stable/library.h>

#include "kv_cache/cache_check_cuda.h"
#include "kv_cache/kv_compact_check.h"

namespace tokcore::kv_cache {
namespace {

void kv_compact(const Tensor& accepted_nodes, const Tensor& accepted_counts, const Tensor& tree_parents,
                const Tensor& tree_counts, const Tensor& lengths, const Tensor& window_starts,
                std::vector<Tensor> recent, std::vector<Tensor> high, std::vector<Tensor> low,
                std::optional<Tensor> k_channel_scale, std::optional<Tensor> v_channel_scale, std::string k_axis,
                std::string v_axis, bool rotate) {
  const Checker check("kv_compact");
  const StackedCache stacked(check, lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale);
  const CacheArguments tensors = stacked.first_layer(k_axis, v_axis, rotate);
  const CacheChecker cache(check, tensors);
  check_compact_tensors(check, {accepted_nodes, accepted_counts, tree_parents, tree_counts}, cache.window());
  check_cache_is_aligned(check, tensors);
  const int64_t most = tree_parents.size(1);
  check.require(most <= kMostTokens, "tree_parents", "N <= 1073741824 on CUDA", most);
  if (cache.params().num_sequences == 0) return;
  const core::CudaScope scope("kv_compact", cache.window());
  const Tensor nodes = torch::stable::contiguous(accepted_nodes), accepted = torch::stable::contiguous(accepted_counts);
  const Tensor parents = torch::stable::contiguous(tree_parents), counts = torch::stable::contiguous(tree_counts);
  const KvCompactCudaParams params = {.cache = cache.params(),
                                      .num_layers = stacked.layers(),
                                      .nodes = core::data_of<int32_t>(nodes),
                                      .accepted = core::data_of<int32_t>(accepted),
                                      .parents = core::data_of<int32_t>(parents),
                                      .counts = core::data_of<int32_t>(counts),
                                      .most_accepted = accepted_nodes.size(1),
                                      .most_nodes = most};
  const Tensor workspace = core::workspace_like(cache.window(), kv_compact_workspace_cuda(params));
  run_kv_compact_cuda(params, workspace.mutable_data_ptr(), scope.stream());
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("kv_compact", TORCH_BOX(&tokcore::kv_cache::kv_compact)); }
