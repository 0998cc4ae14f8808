// Validation of a cache given as plain tensors, and the params struct they make; shared by the backends.
// python/tokcore/ops/_kv_cache_checks.py says the same of fake tensors.
#pragma once

#include <array>

#include "kv_cache/kv_quantize_check.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore::kv_cache {

inline constexpr int64_t kMostTokens = int64_t{1} << 30;  // positions fit into int32, with room for sums

enum TierTensor {
  kKPages,
  kVPages,
  kKScale,
  kKZero,
  kVScale,
  kVZero,
  kPageTable,
  kPageCounts,
  kPositions,
  kTierTensors
};
inline constexpr const char* kTierNames[kNumTiers][kTierTensors] = {
    {"high.k_pages", "high.v_pages", "high.k_scale", "high.k_zero", "high.v_scale", "high.v_zero", "high.page_table",
     "high.page_counts", "high.positions"},
    {"low.k_pages", "low.v_pages", "low.k_scale", "low.k_zero", "low.v_scale", "low.v_zero", "low.page_table",
     "low.page_counts", "low.positions"}};
enum RecentTensor { kWindowK, kWindowV, kSinkK, kSinkV, kRecentTensors };
inline constexpr const char* kRecentNames[] = {"recent.window_k", "recent.window_v", "recent.sink_k", "recent.sink_v"};

struct CacheArguments {
  const Tensor& lengths;
  const Tensor& window_starts;
  const std::vector<Tensor>& recent;
  const std::vector<Tensor>& high;
  const std::vector<Tensor>& low;
  const std::optional<Tensor>& k_channel_scale;
  const std::optional<Tensor>& v_channel_scale;
  const std::string& k_axis;
  const std::string& v_axis;
  bool rotates;
};

class CacheChecker {
 public:
  CacheChecker(const Checker& check, const CacheArguments& arguments) : check_(check), a_(arguments) {
    check_lists();
    check_types();
    check_devices();
    check_recent_shapes();
    for (int name = 0; name < kNumTiers; ++name) check_tier_shapes(static_cast<KvTierName>(name));
    check_options();
    fill();
  }

  const KvCacheParams& params() const { return params_; }
  const Tensor& window() const { return a_.recent[kWindowK]; }

  // What kernels follow without looking: every page number and every count. Reads the tensors' values.
  void check_values() const { check_values(params_); }

  // The same of another layer of the same shapes.
  void check_values(const KvCacheParams& layer) const {
    for (int64_t b = 0; b < layer.num_sequences; ++b) {
      const int64_t length = layer.lengths[b], start = layer.window_starts[b];
      if (length < 0 || length > kMostTokens) fail_value("lengths", b, "in [0, 1073741824]", length);
      const int64_t least = max(layer.num_sinks, length - layer.window_size);
      if (start < least || start > kMostTokens) {
        fail_value("window_starts", b,
                   "in [" + std::to_string(least) + ", 1073741824] (sinks, and what the window holds)", start);
      }
      for (int name = 0; name < kNumTiers; ++name) check_tier_values(layer, static_cast<KvTierName>(name), b);
    }
  }

 private:
  const std::vector<Tensor>& tier_of(KvTierName name) const { return name == kHighTier ? a_.high : a_.low; }
  static const char* name_of(KvTierName tier, int tensor) { return kTierNames[tier][tensor]; }

  [[noreturn]] void fail_value(const char* argument, int64_t sequence, const std::string& expected, int64_t got) const {
    check_.fail(argument, "a value " + expected, std::to_string(got) + " of sequence " + std::to_string(sequence));
  }

  void check_lists() const {
    check_.require(a_.recent.size() == kRecentTensors, "recent", "4 tensors", a_.recent.size());
    for (int name = 0; name < kNumTiers; ++name) {
      const size_t count = tier_of(static_cast<KvTierName>(name)).size();
      check_.require(count == 0 || count == kTierTensors, name == kHighTier ? "high" : "low", "0 or 9 tensors", count);
    }
    check_axis(check_, a_.k_axis, "k_axis");
    check_axis(check_, a_.v_axis, "v_axis");
  }

  void check_types() const {
    const ScalarType dtype = window().scalar_type();
    check_real(check_, kRecentNames[kWindowK], dtype);
    for (int i = 1; i < kRecentTensors; ++i) check_.dtype(a_.recent[i], kRecentNames[i], dtype);
    check_.dtype(a_.lengths, "lengths", ScalarType::Int);
    check_.dtype(a_.window_starts, "window_starts", ScalarType::Int);
    for (int name = 0; name < kNumTiers; ++name) {
      const std::vector<Tensor>& tier = tier_of(static_cast<KvTierName>(name));
      if (tier.empty()) continue;
      auto text = [&](int tensor) { return name_of(static_cast<KvTierName>(name), tensor); };
      for (const int tensor : {kKPages, kVPages}) {
        const ScalarType got = tier[tensor].scalar_type();
        check_.require(
            got == dtype || got == ScalarType::Byte, text(tensor),
            [&] { return "dtype uint8 or " + core::dtype_name(dtype) + " of recent.window_k"; },
            [&] { return core::dtype_name(got); });
      }
      for (int tensor = kKScale; tensor <= kVZero; ++tensor) {
        check_.dtype(tier[tensor], text(tensor), ScalarType::BFloat16);
      }
      check_.dtype(tier[kPageTable], text(kPageTable), ScalarType::Int);
      check_.dtype(tier[kPageCounts], text(kPageCounts), ScalarType::Int);
      const ScalarType positions = tier[kPositions].scalar_type();
      check_.require(positions == ScalarType::Int || positions == ScalarType::UInt16, text(kPositions),
                     "dtype int32 or uint16", [&] { return core::dtype_name(positions); });
    }
    if (a_.k_channel_scale.has_value()) check_.dtype(*a_.k_channel_scale, "k_channel_scale", ScalarType::Float);
    if (a_.v_channel_scale.has_value()) check_.dtype(*a_.v_channel_scale, "v_channel_scale", ScalarType::Float);
  }

  void check_devices() const {
    auto same = [&](const Tensor& tensor, const char* name) {
      check_.same_device(tensor, name, window(), kRecentNames[kWindowK]);
    };
    for (int i = 1; i < kRecentTensors; ++i) same(a_.recent[i], kRecentNames[i]);
    same(a_.lengths, "lengths");
    same(a_.window_starts, "window_starts");
    for (int name = 0; name < kNumTiers; ++name) {
      const std::vector<Tensor>& tier = tier_of(static_cast<KvTierName>(name));
      for (size_t i = 0; i < tier.size(); ++i)
        same(tier[i], name_of(static_cast<KvTierName>(name), static_cast<int>(i)));
    }
    if (a_.k_channel_scale.has_value()) same(*a_.k_channel_scale, "k_channel_scale");
    if (a_.v_channel_scale.has_value()) same(*a_.v_channel_scale, "v_channel_scale");
  }

  // Kernels write through these pointers, so that a copy would not do.
  void contiguous_shape(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape,
                        const char* letters) const {
    check_.shape(tensor, name, shape, letters);
    if (!tensor.is_contiguous()) {
      check_.fail(name, "a contiguous tensor", "strides " + core::shape_text(tensor.strides()));
    }
  }

  void check_recent_shapes() {
    check_.rank(window(), kRecentNames[kWindowK], 4);
    check_.rank(a_.recent[kSinkK], kRecentNames[kSinkK], 4);
    params_.num_sequences = window().size(0);
    params_.num_heads = window().size(1);
    params_.window_size = window().size(2);
    params_.head_dim = window().size(3);
    params_.num_sinks = a_.recent[kSinkK].size(2);
    const int64_t B = params_.num_sequences, H = params_.num_heads, D = params_.head_dim;
    for (int i = 0; i < kRecentTensors; ++i) {
      const int64_t slots = i == kWindowK || i == kWindowV ? params_.window_size : params_.num_sinks;
      contiguous_shape(a_.recent[i], kRecentNames[i], {B, H, slots, D},
                       i <= kWindowV ? "[B, Hkv, W, D] of recent.window_k" : "[B, Hkv, S, D]");
    }
    contiguous_shape(a_.lengths, "lengths", {B}, "B of recent.window_k");
    contiguous_shape(a_.window_starts, "window_starts", {B}, "B of recent.window_k");
    check_.require(D >= 32 && D <= 256 && D % 32 == 0, kRecentNames[kWindowK], "D a multiple of 32 in [32, 256]", D);
    check_.require(params_.window_size >= 1, kRecentNames[kWindowK], "W >= 1", params_.window_size);
    if (a_.k_channel_scale.has_value()) contiguous_shape(*a_.k_channel_scale, "k_channel_scale", {H, D}, "[Hkv, D]");
    if (a_.v_channel_scale.has_value()) contiguous_shape(*a_.v_channel_scale, "v_channel_scale", {H, D}, "[Hkv, D]");
  }

  void check_tier_shapes(KvTierName name) {
    const std::vector<Tensor>& tier = tier_of(name);
    if (tier.empty()) return;
    const Tensor& k_pages = tier[kKPages];
    check_.rank(k_pages, name_of(name, kKPages), 4);
    const int64_t num_pages = k_pages.size(0), page_size = k_pages.size(2);
    const bool known = page_size == 16 || page_size == 32 || page_size == 64 || page_size == 128;
    check_.require(known, name_of(name, kKPages), "a page size of 16, 32, 64 or 128", page_size);
    check_.require(
        params_.page_size == 0 || params_.page_size == page_size, name_of(name, kKPages),
        [&] { return "page size " + std::to_string(params_.page_size) + " of high.k_pages"; }, page_size);
    params_.page_size = page_size;
    check_.rank(tier[kPageTable], name_of(name, kPageTable), 2);
    const int64_t B = params_.num_sequences, width = tier[kPageTable].size(1);
    contiguous_shape(tier[kPageTable], name_of(name, kPageTable), {B, width}, "[B, width]");
    contiguous_shape(tier[kPageCounts], name_of(name, kPageCounts), {B}, "B");
    if (tier[kPositions].numel() > 0) {
      contiguous_shape(tier[kPositions], name_of(name, kPositions), {num_pages, params_.num_heads, page_size},
                       "[P, Hkv, page size]");
    }
    KvTier& made = params_.tiers[name];
    made.num_pages = num_pages;
    made.table_width = width;
    made.keys = check_pages(name, kKPages, num_pages, a_.k_axis);
    made.values = check_pages(name, kVPages, num_pages, a_.v_axis);
    check_.require(
        made.keys.coded == made.values.coded, name_of(name, kVPages),
        [&] {
          return std::string("dtype ") + (made.keys.coded ? "uint8" : "of the window") + " as " +
                 name_of(name, kKPages) + " (codes for both or for none)";
        },
        [&] { return core::dtype_name(tier[kVPages].scalar_type()); });
  }

  KvPages check_pages(KvTierName name, int which, int64_t num_pages, const std::string& axis) const {
    const std::vector<Tensor>& tier = tier_of(name);
    const Tensor& pages = tier[which];
    const Tensor& scale = tier[which == kKPages ? kKScale : kVScale];
    const Tensor& zero = tier[which == kKPages ? kKZero : kVZero];
    const char* scale_name = name_of(name, which == kKPages ? kKScale : kVScale);
    const int64_t H = params_.num_heads, page_size = params_.page_size, D = params_.head_dim;
    check_.rank(pages, name_of(name, which), 4);
    KvPages made = {};
    made.coded = pages.scalar_type() == ScalarType::Byte;
    if (!made.coded) {
      contiguous_shape(pages, name_of(name, which), {num_pages, H, page_size, D}, "[P, Hkv, page size, D]");
      made.head_bytes = page_size * D * static_cast<int64_t>(size_of(core::to_dtype(pages.scalar_type())));
      return made;
    }
    const int64_t row_bytes = pages.size(3);
    const bool known = row_bytes == D || row_bytes * 2 == D || row_bytes * 4 == D;
    check_.require(
        known, name_of(name, which),
        [&] { return "D * bits / 8 bytes a row with bits 8, 4 or 2 and D = " + std::to_string(D); }, row_bytes);
    contiguous_shape(pages, name_of(name, which), {num_pages, H, page_size, row_bytes}, "[P, Hkv, page size, bytes]");
    made.scheme.bits = static_cast<int>(row_bytes * 8 / D);
    made.scheme.axis = axis == "token" ? QuantAxis::kToken : QuantAxis::kChannel;
    made.scheme.symmetric = zero.numel() == 0;
    made.head_bytes = page_size * row_bytes;
    check_.rank(scale, scale_name, 4);
    const bool by_token = made.scheme.axis == QuantAxis::kToken;
    const int64_t groups = scale.size(2), extent = by_token ? D : page_size;
    const bool divides = groups >= 1 && extent % groups == 0 && group_is_supported(extent / groups, extent);
    check_.require(
        divides, scale_name,
        [&] {
          return by_token ? "groups of 16, 32, 64, 128 or D = " + std::to_string(D) + " channels"
                          : "groups of 16, 32, 64 or 128 tokens of a page";
        },
        [&] { return core::shape_of(scale); });
    made.scheme.group = extent / groups;
    const std::vector<int64_t> shape = {num_pages, H, groups, by_token ? page_size : D};
    contiguous_shape(scale, scale_name, shape,
                     by_token ? "[P, Hkv, D / group, page size]" : "[P, Hkv, page size / group, D]");
    if (!made.scheme.symmetric) {
      contiguous_shape(zero, name_of(name, which == kKPages ? kKZero : kVZero), shape, "shape of the scale");
    }
    made.head_scales = page_size * D / made.scheme.group;
    return made;
  }
  static bool group_is_supported(int64_t group, int64_t extent) {
    return group == extent || group == 16 || group == 32 || group == 64 || group == 128;
  }

  void check_options() const {
    if (!a_.rotates) return;
    check_.require(is_power_of_two(params_.head_dim), "rotate", "False unless D is a power of two",
                   [&] { return "D = " + std::to_string(params_.head_dim); });
  }

  void fill() {
    params_.dtype = core::to_dtype(window().scalar_type());
    params_.window_k = a_.recent[kWindowK].mutable_data_ptr();
    params_.window_v = a_.recent[kWindowV].mutable_data_ptr();
    params_.sink_k = a_.recent[kSinkK].mutable_data_ptr();
    params_.sink_v = a_.recent[kSinkV].mutable_data_ptr();
    params_.lengths = core::mutable_data_of<int32_t>(a_.lengths);
    params_.window_starts = core::mutable_data_of<int32_t>(a_.window_starts);
    params_.k_channel_scale = core::float_data_or_null(a_.k_channel_scale);
    params_.v_channel_scale = core::float_data_or_null(a_.v_channel_scale);
    params_.rotates = a_.rotates;
    for (int name = 0; name < kNumTiers; ++name) {
      const std::vector<Tensor>& tier = tier_of(static_cast<KvTierName>(name));
      if (tier.empty()) continue;
      KvTier& made = params_.tiers[name];
      made.page_table = core::data_of<int32_t>(tier[kPageTable]);
      made.page_counts = core::mutable_data_of<int32_t>(tier[kPageCounts]);
      made.positions = tier[kPositions].numel() == 0 ? nullptr : tier[kPositions].mutable_data_ptr();
      made.wide_positions = tier[kPositions].scalar_type() == ScalarType::Int;
      fill_pages(made.keys, tier[kKPages], tier[kKScale], tier[kKZero]);
      fill_pages(made.values, tier[kVPages], tier[kVScale], tier[kVZero]);
    }
  }
  static void fill_pages(KvPages& pages, const Tensor& data, const Tensor& scale, const Tensor& zero) {
    pages.data = static_cast<uint8_t*>(data.mutable_data_ptr());
    if (!pages.coded) return;
    pages.scale = core::mutable_data_of<BFloat16>(scale);
    pages.zero = pages.scheme.symmetric ? nullptr : core::mutable_data_of<BFloat16>(zero);
  }

  void check_tier_values(const KvCacheParams& layer, KvTierName name, int64_t b) const {
    const KvTier& tier = layer.tiers[name];
    if (tier_of(name).empty()) return;
    const int64_t count = tier.page_counts[b];
    if (count < 0 || count > tier.table_width) {
      fail_value(name_of(name, kPageCounts), b,
                 "in [0, " + std::to_string(tier.table_width) + "] (width of the page table)", count);
    }
    for (int64_t i = 0; i < count; ++i) check_page(layer, name, b, i);
  }

 public:
  // The i-th page of sequence b lies in the tier.
  void check_page(KvTierName name, int64_t b, int64_t i) const { check_page(params_, name, b, i); }
  void check_page(const KvCacheParams& layer, KvTierName name, int64_t b, int64_t i) const {
    const KvTier& tier = layer.tiers[name];
    const int64_t page = tier.page_table[b * tier.table_width + i];
    if (page >= 0 && page < tier.num_pages) return;
    fail_value(name_of(name, kPageTable), b, "in [0, " + std::to_string(tier.num_pages) + ") (pages)", page);
  }

 private:
  const Checker& check_;
  const CacheArguments& a_;
  KvCacheParams params_ = {};
};

}  // namespace tokcore::kv_cache
