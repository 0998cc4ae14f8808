// What kv_append does to each sequence, found out and checked before anything is written. Shared by the backends.
#pragma once

#include "kv_cache/cache_check.h"
#include "tokcore/kv_cache/kv_append.h"

namespace tokcore::kv_cache {

struct AppendArguments {
  const Tensor& k;
  const Tensor& v;
  const Tensor& slot_mapping;
  int64_t capacity;
  int64_t residual;
  int64_t page_size;
};

inline void check_append_tensors(const Checker& check, const AppendArguments& a, const Tensor& window) {
  const ScalarType dtype = window.scalar_type();
  check.require(
      a.k.scalar_type() == dtype, "k", [&] { return "dtype " + core::dtype_name(dtype) + " of recent.window_k"; },
      [&] { return core::dtype_name(a.k.scalar_type()); });
  check.dtype(a.v, "v", dtype);
  check.dtype(a.slot_mapping, "slot_mapping", ScalarType::Long);
  check.same_device(a.k, "k", window, "recent.window_k");
  check.same_device(a.v, "v", window, "recent.window_k");
  check.same_device(a.slot_mapping, "slot_mapping", window, "recent.window_k");
  check.rank(a.k, "k", 3);
  check.shape(a.k, "k", {a.k.size(0), window.size(1), window.size(3)}, "[T, Hkv, D]");
  check.shape(a.v, "v", {a.k.size(0), window.size(1), window.size(3)}, "[T, Hkv, D] of k");
  check.shape(a.slot_mapping, "slot_mapping", {a.k.size(0)}, "T of k");
  const bool known = a.page_size == 16 || a.page_size == 32 || a.page_size == 64 || a.page_size == 128;
  check.require(known, "page_size", "16, 32, 64 or 128", a.page_size);
  check.require(
      a.residual >= 0 && a.residual + a.page_size <= window.size(2), "residual",
      [&] { return "a value in [0, " + std::to_string(window.size(2) - a.page_size) + "] (W - page_size)"; },
      a.residual);
  check.require(a.capacity >= 1 && a.capacity <= kMostTokens, "capacity", "a value in [1, 1073741824]", a.capacity);
  check.unit_last_stride(a.k, "k");
  check.unit_last_stride(a.v, "v");
}

class AppendPlan {
 public:
  AppendPlan(const Checker& check, const CacheChecker& cache, const AppendArguments& a, const int64_t* slots)
      : check_(check), cache_(cache), params_(cache.params()), a_(a) {
    find_tokens(slots);
    for (int64_t b = 0; b < params_.num_sequences; ++b) {
      if (!tokens_[b].empty()) plan_row(b);
    }
    for (int name = 0; name < kNumTiers; ++name) check_pages_are_apart(static_cast<KvTierName>(name));
  }

  const std::vector<KvAppendRow>& rows() const { return rows_; }

  // After the kernel: what the tensors say of every sequence.
  void commit() const {
    for (const KvAppendRow& row : rows_) {
      params_.lengths[row.sequence] = static_cast<int32_t>(row.new_length);
      params_.window_starts[row.sequence] = static_cast<int32_t>(row.new_start);
      for (int name = 0; name < kNumTiers; ++name) {
        const int64_t count = row.first_page[name] + row.pages_to_write[name];
        if (row.pages_to_write[name] > 0) params_.tiers[name].page_counts[row.sequence] = static_cast<int32_t>(count);
      }
    }
  }

 private:
  static std::string at(int64_t slot, int64_t token) { return std::to_string(slot) + " at " + std::to_string(token); }

  // Slot = sequence * capacity + position; -1 is left out. Positions of a sequence go on where it ends.
  void find_tokens(const int64_t* slots) {
    tokens_.resize(static_cast<size_t>(params_.num_sequences));
    const int64_t num_slots = params_.num_sequences * a_.capacity;
    for (int64_t token = 0; token < a_.k.size(0); ++token) {
      const int64_t slot = slots[token];
      if (slot == -1) continue;
      const auto got = [&] { return at(slot, token); };
      check_.require(
          slot >= 0 && slot < num_slots, "slot_mapping",
          [&] { return "-1 or a value in [0, " + std::to_string(num_slots) + ") (B * capacity)"; }, got);
      const int64_t b = slot / a_.capacity;
      const int64_t next = params_.lengths[b] + static_cast<int64_t>(tokens_[b].size());
      check_.require(
          next < a_.capacity, "slot_mapping",
          [&] {
            return "room for another token in sequence " + std::to_string(b) + " (capacity " +
                   std::to_string(a_.capacity) + ")";
          },
          got);
      check_.require(
          slot % a_.capacity == next, "slot_mapping",
          [&] {
            return std::to_string(b * a_.capacity + next) + " (the next slot of sequence " + std::to_string(b) + ")";
          },
          got);
      tokens_[b].push_back(token);
    }
  }

  void plan_row(int64_t b) {
    KvAppendRow row = {};
    row.sequence = b;
    row.old_length = params_.lengths[b];
    row.new_length = row.old_length + static_cast<int64_t>(tokens_[b].size());
    row.old_start = params_.window_starts[b];
    row.token_of = tokens_[b].data();
    const int64_t leaving = max(row.new_length - row.old_start - a_.residual, 0) / a_.page_size;
    row.new_start = row.old_start + leaving * a_.page_size;
    int64_t rest = leaving;
    bool has_tiers = false;
    for (int name = 0; name < kNumTiers; ++name) {
      const KvTier& tier = params_.tiers[name];
      if (tier.page_counts == nullptr) continue;
      has_tiers = true;
      row.first_page[name] = tier.page_counts[b];
      row.pages_to_write[name] = min(rest, tier.table_width - row.first_page[name]);
      rest -= row.pages_to_write[name];
      for (int64_t i = 0; i < row.pages_to_write[name]; ++i) {
        cache_.check_page(static_cast<KvTierName>(name), b, row.first_page[name] + i);
      }
    }
    check_.require(
        rest == 0 || !has_tiers, "slot_mapping",
        [&] {
          return "pages for " + std::to_string(leaving * a_.page_size) + " tokens in sequence " + std::to_string(b);
        },
        [&] { return "page tables with room for " + std::to_string((leaving - rest) * a_.page_size); });
    rows_.push_back(row);
  }

  // A page that is about to be written belongs to one place of one sequence.
  void check_pages_are_apart(KvTierName name) const {
    const KvTier& tier = params_.tiers[name];
    bool writes = false;
    for (const KvAppendRow& row : rows_) writes |= row.pages_to_write[name] > 0;
    if (!writes) return;
    std::vector<bool> used(static_cast<size_t>(tier.num_pages));
    auto take = [&](int64_t b, int64_t first, int64_t count, bool must_be_free) {
      for (int64_t i = first; i < first + count; ++i) {
        const int64_t page = tier.page_table[b * tier.table_width + i];
        check_.require(!must_be_free || !used[page], name == kHighTier ? "high.page_table" : "low.page_table",
                       "a page of its own for every new page",
                       [&] { return std::to_string(page) + " twice, in sequence " + std::to_string(b); });
        used[page] = true;
      }
    };
    for (int64_t b = 0; b < params_.num_sequences; ++b) take(b, 0, tier.page_counts[b], false);
    for (const KvAppendRow& row : rows_) take(row.sequence, row.first_page[name], row.pages_to_write[name], true);
  }

  const Checker& check_;
  const CacheChecker& cache_;
  const KvCacheParams& params_;
  const AppendArguments& a_;
  std::vector<std::vector<int64_t>> tokens_;  // [B] rows of k by position
  std::vector<KvAppendRow> rows_;
};

}  // namespace tokcore::kv_cache
