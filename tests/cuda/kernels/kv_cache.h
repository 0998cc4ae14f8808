// Params structs of the KV cache from Python dictionaries.
#pragma once

#include "fields.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore::simt {

inline void fill(QuantScheme& scheme, Fields& fields) {
  bool by_token = true;
  fields("bits", scheme.bits);
  fields("by_token", by_token);
  fields("group", scheme.group);
  fields("symmetric", scheme.symmetric);
  scheme.axis = by_token ? QuantAxis::kToken : QuantAxis::kChannel;
}

inline void fill(KvPages& pages, Fields& fields) {
  fields("coded", pages.coded);
  fields.nested("scheme", [&](Fields& inner) { fill(pages.scheme, inner); });
  fields("data", pages.data);
  fields("head_bytes", pages.head_bytes);
  fields("scale", pages.scale);
  fields("zero", pages.zero);
  fields("head_scales", pages.head_scales);
}

inline void fill(KvTier& tier, Fields& fields) {
  fields.nested("keys", [&](Fields& inner) { fill(tier.keys, inner); });
  fields.nested("values", [&](Fields& inner) { fill(tier.values, inner); });
  fields("num_pages", tier.num_pages);
  fields("table_width", tier.table_width);
  fields("page_table", tier.page_table);
  fields("page_counts", tier.page_counts);
  fields("positions", tier.positions);
  fields("wide_positions", tier.wide_positions);
}

inline void fill(KvCacheParams& cache, Fields& fields) {
  std::string dtype;
  fields("dtype", dtype);
  cache.dtype = dtype_of(dtype);
  fields("num_sequences", cache.num_sequences);
  fields("num_heads", cache.num_heads);
  fields("head_dim", cache.head_dim);
  fields("page_size", cache.page_size);
  fields("window_size", cache.window_size);
  fields("num_sinks", cache.num_sinks);
  fields("window_k", cache.window_k);
  fields("window_v", cache.window_v);
  fields("sink_k", cache.sink_k);
  fields("sink_v", cache.sink_v);
  fields("lengths", cache.lengths);
  fields("window_starts", cache.window_starts);
  fields("k_channel_scale", cache.k_channel_scale);
  fields("v_channel_scale", cache.v_channel_scale);
  fields("rotates", cache.rotates);
  fields.nested("high", [&](Fields& inner) { fill(cache.tiers[kHighTier], inner); });
  fields.nested("low", [&](Fields& inner) { fill(cache.tiers[kLowTier], inner); });
}

}  // namespace tokcore::simt
