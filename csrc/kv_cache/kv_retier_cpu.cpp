// Torch-facing CPU entry of kv_retier.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "kv_cache/kv_retier_check.h"

namespace tokcore::kv_cache {
namespace {

// Every head's pages of a sequence hold the positions from the sinks on, each once; kernels index by them.
void check_positions(const Checker& check, const KvCacheParams& cache, int64_t b) {
  int64_t count = 0;
  for (const KvTierName name : kTiers) count += int64_t{cache.tiers[name].page_counts[b]} * cache.page_size;
  std::vector<bool> seen(static_cast<size_t>(count));
  for (int64_t head = 0; head < cache.num_heads; ++head) {
    seen.assign(static_cast<size_t>(count), false);
    for (const KvTierName name : kTiers) {
      const KvTier& tier = cache.tiers[name];
      for (int64_t i = 0; i < tier.page_counts[b]; ++i) {
        const int64_t page = tier.page_table[b * tier.table_width + i];
        const int64_t first = (page * cache.num_heads + head) * cache.page_size;
        for (int64_t slot = first; slot < first + cache.page_size; ++slot) {
          const int64_t position = position_in_page(tier, slot) - cache.num_sinks;
          const bool fresh = position >= 0 && position < count && !seen[static_cast<size_t>(position)];
          check.require(fresh, name == kHighTier ? "high.positions" : "low.positions",
                        "each of [" + std::to_string(cache.num_sinks) + ", " + std::to_string(cache.num_sinks + count) +
                            ") once in a head",
                        std::to_string(position + cache.num_sinks) + " of sequence " + std::to_string(b));
          seen[static_cast<size_t>(position)] = true;
        }
      }
    }
  }
}

// Pages that are rewritten belong to one place of one sequence.
void check_pages_are_apart(const Checker& check, const KvCacheParams& cache, KvTierName name, const int32_t* wanted) {
  const KvTier& tier = cache.tiers[name];
  std::vector<bool> used(static_cast<size_t>(tier.num_pages));
  for (int64_t b = 0; b < cache.num_sequences; ++b) {
    const int64_t all = int64_t{cache.tiers[kHighTier].page_counts[b]} + cache.tiers[kLowTier].page_counts[b];
    const int64_t after = name == kHighTier ? wanted[b] : all - wanted[b];
    for (int64_t i = 0; i < max(after, tier.page_counts[b]); ++i) {
      const int64_t page = tier.page_table[b * tier.table_width + i];
      check.require(!used[static_cast<size_t>(page)], name == kHighTier ? "high.page_table" : "low.page_table",
                    "a page of its own for every page of a sequence",
                    std::to_string(page) + " twice, in sequence " + std::to_string(b));
      used[static_cast<size_t>(page)] = true;
    }
  }
}

void kv_retier(const Tensor& scores, const Tensor& high_pages, const Tensor& lengths, const Tensor& window_starts,
               std::vector<Tensor> recent, std::vector<Tensor> high, std::vector<Tensor> low,
               std::optional<Tensor> k_channel_scale, std::optional<Tensor> v_channel_scale, std::string k_axis,
               std::string v_axis, bool rotate) {
  const Checker check("kv_retier");
  const CacheArguments tensors{lengths,         window_starts,   recent, high,   low,
                               k_channel_scale, v_channel_scale, k_axis, v_axis, rotate};
  const CacheChecker cache(check, tensors);
  const KvCacheParams& layer = cache.params();
  check_retier_tensors(check, tensors, cache, scores, high_pages);
  cache.check_values();
  const Tensor dense_high = torch::stable::contiguous(high_pages);
  const int32_t* wanted = core::data_of<int32_t>(dense_high);
  for (int64_t b = 0; b < layer.num_sequences; ++b) {
    const KvTier& to_high = layer.tiers[kHighTier];
    const KvTier& to_low = layer.tiers[kLowTier];
    const int64_t pages = int64_t{to_high.page_counts[b]} + to_low.page_counts[b];
    const int64_t least = max(0, pages - to_low.table_width), most = min(pages, to_high.table_width);
    check.require(wanted[b] >= least && wanted[b] <= most, "high_pages",
                  "a value in [" + std::to_string(least) + ", " + std::to_string(most) + "] (room of the tiers)",
                  std::to_string(wanted[b]) + " of sequence " + std::to_string(b));
    const int64_t end = layer.num_sinks + pages * layer.page_size;
    check.require(pages == 0 || scores.size(2) >= end, "scores",
                  "N >= " + std::to_string(end) + " (positions in pages)", scores.size(2));
    for (int64_t i = 0; i < wanted[b]; ++i) cache.check_page(kHighTier, b, i);
    for (int64_t i = 0; i < pages - wanted[b]; ++i) cache.check_page(kLowTier, b, i);
    check_positions(check, layer, b);
  }
  for (const KvTierName name : kTiers) check_pages_are_apart(check, layer, name, wanted);
  run_kv_retier_cpu(retier_params(layer, scores, dense_high), core::torch_threads());
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("kv_retier", TORCH_BOX(&tokcore::kv_cache::kv_retier)); }
