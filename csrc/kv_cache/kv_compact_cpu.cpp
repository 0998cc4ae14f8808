// Torch-facing CPU entry of kv_compact.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
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
  const int64_t layers = stacked.layers();
  const CacheArguments tensors = stacked.first_layer(k_axis, v_axis, rotate);
  const CacheChecker cache(check, tensors);
  check_compact_tensors(check, {accepted_nodes, accepted_counts, tree_parents, tree_counts}, cache.window());

  const Tensor nodes = torch::stable::contiguous(accepted_nodes), accepted = torch::stable::contiguous(accepted_counts);
  const Tensor parents = torch::stable::contiguous(tree_parents), counts = torch::stable::contiguous(tree_counts);
  const Paths paths = {core::data_of<int32_t>(nodes),   core::data_of<int32_t>(accepted),
                       core::data_of<int32_t>(parents), core::data_of<int32_t>(counts),
                       accepted_nodes.size(1),          tree_parents.size(1)};
  const CompactPlan plan(check, cache, paths, layers);
  if (plan.rows().empty()) return;
  KvCompactParams params = {};
  params.cache = cache.params();
  params.rows = plan.rows().data();
  params.num_rows = static_cast<int64_t>(plan.rows().size());
  run_kv_compact_cpu(params, core::torch_threads());
  plan.commit();
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("kv_compact", TORCH_BOX(&tokcore::kv_cache::kv_compact)); }
