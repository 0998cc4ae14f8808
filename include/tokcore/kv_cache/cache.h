// One layer of a KV cache, as plain pointers.
//
// A sequence of n tokens lies in three places. Its first tokens (the sinks) and its last ones (the residual window) are
// kept as they came; the tokens between lie in pages of one or two tiers, each of its own precision. A page holds
// page_size tokens of every head; which tokens a head has in a page may differ between heads where the tier has
// positions. Pages are always full: tokens leave the window a page at a time.
//
// Letters: B sequences, Hkv heads, D channels, P pages of a tier, W slots of the window, S sinks.
#pragma once

#include "tokcore/common/dtype.h"
#include "tokcore/common/quantization.h"

namespace tokcore {

// The keys or the values in the pages of a tier.
struct KvPages {
  bool coded;  // codes by `scheme`, or numbers of the cache's dtype
  QuantScheme scheme;
  uint8_t* data;        // [P, Hkv, page bytes]: codes as in quantization.h, or rows [page_size, D]
  int64_t head_bytes;   // of one head in a page
  BFloat16* scale;      // [P, Hkv, D / group, page_size], or [P, Hkv, page_size / group, D] with axis channel
  BFloat16* zero;       // as scale, or null: symmetric
  int64_t head_scales;  // scales of one head in a page
};

struct KvTier {
  KvPages keys, values;
  int64_t num_pages;          // P; 0: the cache does without this tier
  int64_t table_width;        // most pages of a sequence
  const int32_t* page_table;  // [B, table_width] page numbers
  int32_t* page_counts;       // [B] pages in use
  void* positions;            // [P, Hkv, page_size] uint16 or int32; null: the i-th page of a sequence
                              // holds the positions from S + i * page_size on
  bool wide_positions;        // int32
};

enum KvTierName { kHighTier, kLowTier, kNumTiers };
inline constexpr KvTierName kTiers[] = {kHighTier, kLowTier};

struct KvCacheParams {
  DType dtype;            // of window, sinks and pages without codes
  int64_t num_sequences;  // B
  int64_t num_heads;      // Hkv
  int64_t head_dim;       // D, a multiple of 32
  int64_t page_size;      // 16, 32, 64 or 128
  int64_t window_size;    // W
  int64_t num_sinks;      // S
  void* window_k;         // [B, Hkv, W, D]: position p in slot p % W
  void* window_v;
  void* sink_k;  // [B, Hkv, S, D]
  void* sink_v;
  int32_t* lengths;              // [B] tokens of each sequence
  int32_t* window_starts;        // [B] the first position of the window, at least S
  const float* k_channel_scale;  // [Hkv, D] or null: coded keys are divided by it
  const float* v_channel_scale;
  bool rotates;  // coded keys and values are rotated
  KvTier tiers[kNumTiers];
};

inline int32_t position_in_page(const KvTier& tier, int64_t slot) {  // slot counts over [P, Hkv, page_size]
  return tier.wide_positions ? static_cast<const int32_t*>(tier.positions)[slot]
                             : static_cast<const uint16_t*>(tier.positions)[slot];
}
inline void set_position_in_page(const KvTier& tier, int64_t slot, int64_t position) {
  if (tier.wide_positions) {
    static_cast<int32_t*>(tier.positions)[slot] = static_cast<int32_t>(position);
  } else {
    static_cast<uint16_t*>(tier.positions)[slot] = static_cast<uint16_t>(position);
  }
}

// Moves the pointers of a cache whose tensors hold all layers one after the other from the first layer's to another's.
// Plain code for host and device alike.
constexpr void advance_to_layer(KvCacheParams& cache, int64_t layer) {
  auto advance = [layer](auto*& pointer, int64_t elements) {
    if (pointer != nullptr) pointer += layer * elements;
  };
  auto advance_bytes = [layer](auto*& pointer, int64_t bytes) {
    if (pointer != nullptr) pointer = reinterpret_cast<char*>(pointer) + layer * bytes;
  };
  const int64_t row_bytes = cache.head_dim * static_cast<int64_t>(size_of(cache.dtype));
  const int64_t rows = cache.num_sequences * cache.num_heads;
  advance_bytes(cache.window_k, rows * cache.window_size * row_bytes);
  advance_bytes(cache.window_v, rows * cache.window_size * row_bytes);
  advance_bytes(cache.sink_k, rows * cache.num_sinks * row_bytes);
  advance_bytes(cache.sink_v, rows * cache.num_sinks * row_bytes);
  advance(cache.lengths, cache.num_sequences);
  advance(cache.window_starts, cache.num_sequences);
  advance(cache.k_channel_scale, cache.num_heads * cache.head_dim);
  advance(cache.v_channel_scale, cache.num_heads * cache.head_dim);
  for (KvTier& tier : cache.tiers) {
    const int64_t places = tier.num_pages * cache.num_heads;
    auto advance_pages = [&](KvPages& pages) {
      advance(pages.data, places * pages.head_bytes);
      advance(pages.scale, places * pages.head_scales);
      advance(pages.zero, places * pages.head_scales);
    };
    advance_pages(tier.keys);
    advance_pages(tier.values);
    advance(tier.page_table, cache.num_sequences * tier.table_width);
    advance(tier.page_counts, cache.num_sequences);
    advance_bytes(tier.positions, places * cache.page_size * (tier.wide_positions ? 4 : 2));
  }
}

// One layer of a cache whose tensors hold all layers one after the other, from the first layer's.
inline KvCacheParams layer_of(const KvCacheParams& first, int64_t layer) {
  KvCacheParams made = first;
  advance_to_layer(made, layer);
  return made;
}

}  // namespace tokcore
