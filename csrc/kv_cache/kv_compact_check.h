// Validation of kv_compact beyond that of the cache, and its plan: what moves in which layer and sequence. Everything
// is checked before anything is written.
#pragma once

#include "kv_cache/cache_check.h"
#include "tokcore/kv_cache/kv_compact.h"

namespace tokcore::kv_cache {

// The tensors of a cache with a leading dimension of layers, as those of its first layer; the others lie behind it.
class StackedCache {
 public:
  StackedCache(const Checker& check, const Tensor& lengths, const Tensor& window_starts,
               const std::vector<Tensor>& recent, const std::vector<Tensor>& high, const std::vector<Tensor>& low,
               const std::optional<Tensor>& k_channel_scale, const std::optional<Tensor>& v_channel_scale)
      : check_(check),
        layers_(layers_of(check, lengths)),
        lengths_(first(lengths, "lengths")),
        window_starts_(first(window_starts, "window_starts")),
        recent_(first(recent, kRecentNames, kRecentTensors)),
        high_(first(high, kTierNames[kHighTier], kTierTensors)),
        low_(first(low, kTierNames[kLowTier], kTierTensors)),
        k_channel_scale_(first(k_channel_scale, "k_channel_scale")),
        v_channel_scale_(first(v_channel_scale, "v_channel_scale")) {}

  int64_t layers() const { return layers_; }
  CacheArguments first_layer(const std::string& k_axis, const std::string& v_axis, bool rotates) const {
    return {lengths_,         window_starts_,   recent_, high_,  low_,
            k_channel_scale_, v_channel_scale_, k_axis,  v_axis, rotates};
  }

 private:
  static int64_t layers_of(const Checker& check, const Tensor& lengths) {
    check.rank(lengths, "lengths", 2);
    return lengths.size(0);
  }
  Tensor first(const Tensor& tensor, const char* name) const {
    check_.require(tensor.dim() >= 1 && tensor.size(0) == layers_ && layers_ >= 1, name,
                   "a leading dimension of " + std::to_string(max(layers_, 1)) + " layers", core::shape_of(tensor));
    if (!tensor.is_contiguous()) {
      check_.fail(name, "a contiguous tensor", "strides " + core::shape_text(tensor.strides()));
    }
    return torch::stable::select(tensor, 0, 0);
  }
  std::vector<Tensor> first(const std::vector<Tensor>& tensors, const char* const* names, size_t count) const {
    std::vector<Tensor> made;
    for (size_t i = 0; i < tensors.size(); ++i) made.push_back(first(tensors[i], i < count ? names[i] : names[0]));
    return made;
  }
  std::optional<Tensor> first(const std::optional<Tensor>& tensor, const char* name) const {
    if (!tensor.has_value()) return std::nullopt;
    return first(*tensor, name);
  }

  const Checker& check_;
  int64_t layers_;
  Tensor lengths_, window_starts_;
  std::vector<Tensor> recent_, high_, low_;
  std::optional<Tensor> k_channel_scale_, v_channel_scale_;
};

struct CompactArguments {
  const Tensor& nodes;
  const Tensor& accepted;
  const Tensor& parents;
  const Tensor& counts;
};

inline void check_compact_tensors(const Checker& check, const CompactArguments& a, const Tensor& window) {
  check.dtype(a.nodes, "accepted_nodes", ScalarType::Int);
  check.dtype(a.accepted, "accepted_counts", ScalarType::Int);
  check.dtype(a.parents, "tree_parents", ScalarType::Int);
  check.dtype(a.counts, "tree_counts", ScalarType::Int);
  check.same_device(a.nodes, "accepted_nodes", window, "recent.window_k");
  check.same_device(a.accepted, "accepted_counts", window, "recent.window_k");
  check.same_device(a.parents, "tree_parents", window, "recent.window_k");
  check.same_device(a.counts, "tree_counts", window, "recent.window_k");
  const int64_t B = window.size(0);
  check.rank(a.nodes, "accepted_nodes", 2);
  check.rank(a.parents, "tree_parents", 2);
  check.shape(a.nodes, "accepted_nodes", {B, a.nodes.size(1)}, "[B, K], B of recent.window_k");
  check.shape(a.accepted, "accepted_counts", {B}, "B of recent.window_k");
  check.shape(a.parents, "tree_parents", {B, a.parents.size(1)}, "[B, N], B of recent.window_k");
  check.shape(a.counts, "tree_counts", {B}, "B of recent.window_k");
}

// Plain pointers to the values, dense.
struct Paths {
  const int32_t* nodes;     // [B, K]
  const int32_t* accepted;  // [B]
  const int32_t* parents;   // [B, N]
  const int32_t* counts;    // [B]
  int64_t most_accepted, most_nodes;
};

class CompactPlan {
 public:
  CompactPlan(const Checker& check, const CacheChecker& cache, const Paths& paths, int64_t num_layers)
      : check_(check), cache_(cache), first_(cache.params()), paths_(paths) {
    for (int64_t b = 0; b < first_.num_sequences; ++b) check_path(b);
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      const KvCacheParams params = layer_of(first_, layer);
      cache_.check_values(params);
      for (int64_t b = 0; b < params.num_sequences; ++b) plan_row(params, layer, b);
    }
    for (size_t i = 0; i < rows_.size(); ++i) rows_[i].pages = pages_.data() + first_page_of_row_[i];
    for (const KvCompactRow& row : rows_) check_pages_are_apart(row);
  }

  const std::vector<KvCompactRow>& rows() const { return rows_; }

  // After the kernel: what the tensors say of every sequence.
  void commit() const {
    for (const KvCompactRow& row : rows_) {
      const KvCacheParams params = layer_of(first_, row.layer);
      params.lengths[row.sequence] = static_cast<int32_t>(row.new_length);
      params.window_starts[row.sequence] = static_cast<int32_t>(row.new_start);
      for (int64_t i = 0; i < row.num_pages; ++i) {
        const int64_t place = params.num_sinks + (row.first_page + i) * params.page_size;
        if (place >= row.new_start) --params.tiers[row.pages[i].tier].page_counts[row.sequence];
      }
    }
  }

 private:
  static std::string of(int64_t value, int64_t b) {
    return std::to_string(value) + " of sequence " + std::to_string(b);
  }

  // The accepted nodes go down from the root.
  void check_path(int64_t b) const {
    const int64_t count = paths_.counts[b], kept = paths_.accepted[b];
    check_.require(count >= 0 && count <= paths_.most_nodes, "tree_counts",
                   "a value in [0, " + std::to_string(paths_.most_nodes) + "] (N of tree_parents)", of(count, b));
    const int64_t most = min(count, paths_.most_accepted);
    check_.require(kept >= 0 && kept <= most, "accepted_counts",
                   "a value in [0, " + std::to_string(most) + "] (nodes of the tree, K of accepted_nodes)",
                   of(kept, b));
    for (int64_t i = 0; i < kept; ++i) {
      const int64_t node = paths_.nodes[b * paths_.most_accepted + i];
      const int64_t above = i == 0 ? -1 : paths_.nodes[b * paths_.most_accepted + i - 1];
      // A parent comes before its child, so that the path ascends.
      const bool follows = node > above && node < count && paths_.parents[b * paths_.most_nodes + node] == above;
      check_.require(follows, "accepted_nodes",
                     i == 0 ? std::string("the root, node 0") : "a child of node " + std::to_string(above),
                     std::to_string(node) + " at " + std::to_string(i) + " of sequence " + std::to_string(b));
    }
  }

  void plan_row(const KvCacheParams& params, int64_t layer, int64_t b) {
    const int64_t count = paths_.counts[b], length = params.lengths[b];
    check_.require(count <= length, "tree_counts",
                   "at most " + std::to_string(length) + " (tokens in layer " + std::to_string(layer) + ")",
                   of(count, b));
    if (count == 0) return;
    KvCompactRow row = {};
    row.layer = layer;
    row.sequence = b;
    row.prefix = length - count;
    row.old_length = length;
    row.new_length = row.prefix + paths_.accepted[b];
    row.old_start = row.new_start = params.window_starts[b];
    row.nodes = paths_.nodes + b * paths_.most_accepted;
    first_page_of_row_.push_back(pages_.size());
    const int64_t page_size = params.page_size, sinks = params.num_sinks;
    if (row.old_start > max(row.prefix, sinks)) {
      check_.require(page_size > 0, "window_starts",
                     "at most " + std::to_string(row.prefix) + ": without tiers the tree's nodes stand in the window",
                     of(row.old_start, b));
      check_.require(row.old_start <= length, "window_starts",
                     "at most " + std::to_string(length) + " (tokens in layer " + std::to_string(layer) + ")",
                     of(row.old_start, b));
      check_.require(params.window_size >= page_size, "recent.window_k",
                     "W >= " + std::to_string(page_size) + " (a page)", params.window_size);
      const int64_t total = (row.old_start - sinks) / page_size;
      check_.require(sinks + total * page_size == row.old_start, "window_starts",
                     std::to_string(sinks) + " plus whole pages of " + std::to_string(page_size), of(row.old_start, b));
      row.first_page = max(row.prefix - sinks, 0) / page_size;
      row.num_pages = total - row.first_page;
      row.new_start = min(row.old_start, sinks + max(row.new_length - sinks, 0) / page_size * page_size);
      find_pages(params, row);
    }
    rows_.push_back(row);
  }

  // The last pages of the tiers, as kv_append left them.
  void find_pages(const KvCacheParams& params, const KvCompactRow& row) {
    int64_t left[kNumTiers];
    for (const KvTierName name : kTiers) {
      const KvTier& tier = params.tiers[name];
      left[name] = tier.page_counts == nullptr ? 0 : tier.page_counts[row.sequence];
    }
    const size_t begin = pages_.size();
    pages_.resize(begin + static_cast<size_t>(row.num_pages));
    for (int64_t i = row.num_pages - 1; i >= 0; --i) {
      const int64_t place = params.num_sinks + (row.first_page + i) * params.page_size;
      const bool low = holds(params, kLowTier, row.sequence, left[kLowTier] - 1, place);
      const bool high = !low && holds(params, kHighTier, row.sequence, left[kHighTier] - 1, place);
      check_.require(low || high, params.tiers[kLowTier].page_counts != nullptr ? "low.positions" : "high.positions",
                     "the tree's nodes as kv_append left them, " + std::to_string(params.page_size) +
                         " positions in order from " + std::to_string(place),
                     "others in sequence " + std::to_string(row.sequence));
      const KvTierName name = low ? kLowTier : kHighTier;
      const KvTier& tier = params.tiers[name];
      KvCompactPage& page = pages_[begin + static_cast<size_t>(i)];
      page = {name, tier.page_table[row.sequence * tier.table_width + --left[name]], false};
      for (int64_t at = max(place, row.prefix); at < min(place + params.page_size, row.new_length); ++at) {
        page.is_written |= row.nodes[at - row.prefix] != at - row.prefix;
      }
      page.is_written &= place < row.new_start;
    }
  }
  static bool holds(const KvCacheParams& params, KvTierName name, int64_t b, int64_t index, int64_t place) {
    if (index < 0) return false;
    const KvTier& tier = params.tiers[name];
    if (tier.positions == nullptr) return params.num_sinks + index * params.page_size == place;
    const int64_t page = tier.page_table[b * tier.table_width + index];
    for (int64_t slot = 0; slot < params.num_heads * params.page_size; ++slot) {
      const int64_t found = position_in_page(tier, page * params.num_heads * params.page_size + slot);
      if (found != place + slot % params.page_size) return false;
    }
    return true;
  }

  // A page that is about to be written belongs to one sequence.
  void check_pages_are_apart(const KvCompactRow& row) const {
    const KvCacheParams params = layer_of(first_, row.layer);
    for (int64_t i = 0; i < row.num_pages; ++i) {
      const KvCompactPage& written = row.pages[i];
      if (!written.is_written) continue;
      const KvTier& tier = params.tiers[written.tier];
      int64_t users = 0;
      for (int64_t b = 0; b < params.num_sequences; ++b) {
        for (int64_t j = 0; j < tier.page_counts[b]; ++j) {
          users += tier.page_table[b * tier.table_width + j] == written.page;
        }
      }
      check_.require(users == 1, written.tier == kHighTier ? "high.page_table" : "low.page_table",
                     "a page of its own for every page that holds nodes",
                     std::to_string(written.page) + " twice, in sequence " + std::to_string(row.sequence));
    }
  }

  const Checker& check_;
  const CacheChecker& cache_;
  const KvCacheParams& first_;
  const Paths& paths_;
  std::vector<KvCompactRow> rows_;
  std::vector<KvCompactPage> pages_;
  std::vector<size_t> first_page_of_row_;
};

}  // namespace tokcore::kv_cache
