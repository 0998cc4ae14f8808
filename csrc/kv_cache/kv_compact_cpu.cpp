// Torch-facing CPU entry of kv_compact.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "kv_cache/kv_compact_check.h"

namespace tokcore::kv_cache {
namespace {

// The first layer of tensors that hold all layers; the others lie behind it.
Tensor first_layer(const Checker& check, const Tensor& tensor, const char* name, int64_t layers) {
  check.require(tensor.dim() >= 1 && tensor.size(0) == layers && layers >= 1, name,
                "a leading dimension of " + std::to_string(max(layers, 1)) + " layers", core::shape_of(tensor));
  if (!tensor.is_contiguous()) {
    check.fail(name, "a contiguous tensor", "strides " + core::shape_text(tensor.strides()));
  }
  return torch::stable::select(tensor, 0, 0);
}
std::vector<Tensor> first_layers(const Checker& check, const std::vector<Tensor>& tensors, const char* const* names,
                                 size_t count, int64_t layers) {
  std::vector<Tensor> made;
  for (size_t i = 0; i < tensors.size(); ++i) {
    made.push_back(first_layer(check, tensors[i], i < count ? names[i] : names[0], layers));
  }
  return made;
}
std::optional<Tensor> first_layer(const Checker& check, const std::optional<Tensor>& tensor, const char* name,
                                  int64_t layers) {
  if (!tensor.has_value()) return std::nullopt;
  return first_layer(check, *tensor, name, layers);
}

void kv_compact(const Tensor& accepted_nodes, const Tensor& accepted_counts, const Tensor& tree_parents,
                const Tensor& tree_counts, const Tensor& lengths, const Tensor& window_starts,
                std::vector<Tensor> recent, std::vector<Tensor> high, std::vector<Tensor> low,
                std::optional<Tensor> k_channel_scale, std::optional<Tensor> v_channel_scale, std::string k_axis,
                std::string v_axis, bool rotate) {
  const Checker check("kv_compact");
  check.rank(lengths, "lengths", 2);
  const int64_t layers = lengths.size(0);
  const Tensor first_lengths = first_layer(check, lengths, "lengths", layers);
  const Tensor first_starts = first_layer(check, window_starts, "window_starts", layers);
  const std::vector<Tensor> first_recent = first_layers(check, recent, kRecentNames, kRecentTensors, layers);
  const std::vector<Tensor> first_high = first_layers(check, high, kTierNames[kHighTier], kTierTensors, layers);
  const std::vector<Tensor> first_low = first_layers(check, low, kTierNames[kLowTier], kTierTensors, layers);
  const std::optional<Tensor> first_k_scale = first_layer(check, k_channel_scale, "k_channel_scale", layers);
  const std::optional<Tensor> first_v_scale = first_layer(check, v_channel_scale, "v_channel_scale", layers);
  const CacheArguments tensors{first_lengths, first_starts,  first_recent, first_high, first_low,
                               first_k_scale, first_v_scale, k_axis,       v_axis,     rotate};
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
