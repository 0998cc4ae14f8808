// How decode_attention cuts a cache on CUDA: pure functions of the cache, never of the GPU, so that a sequence's result
// depends on nothing but itself.
#pragma once

#include "tokcore/common/math.h"
#include "tokcore/kv_cache/decode_attention.h"

namespace tokcore::kv_cache {

// A source of tokens (the pages of a tier, or sinks and window) is cut into at most this many splits, of at least this
// many tokens each: short caches fill a GPU, long ones leave few partial results.
inline constexpr int64_t kMostSplits = 64;
inline constexpr int64_t kLeastSplitTokens = 256;
inline constexpr int64_t kMostTileTokens = 128;

// Tokens of a split of `count` tokens that come in units of `unit`: whole tiles, whole pages.
constexpr int64_t split_tokens(int64_t count, int64_t unit) {
  const int64_t multiple = max(unit, kMostTileTokens);
  return round_up(max(kLeastSplitTokens, ceil_div(count, kMostSplits)), multiple);
}
// The most splits of any number of tokens up to `most`.
constexpr int64_t most_splits(int64_t most) { return min(ceil_div(most, kLeastSplitTokens), kMostSplits); }

// Rows of queries share out registers with scores: a block of 32 takes tiles of half as many tokens.
constexpr int64_t most_tile_tokens(int strips) { return strips == 1 ? kMostTileTokens : kMostTileTokens / 2; }

// Tokens of a tile: as many as fill 16 KB of keys, a power of two in [16, 128].
constexpr int64_t tile_tokens(int64_t row_bytes, int strips) {
  int64_t tokens = most_tile_tokens(strips);
  while (tokens > 16 && tokens * row_bytes > 16 * 1024) tokens /= 2;
  return tokens;
}
// With codes at least 64, which a warp each of four shares out in units of 16. Pages whose bytes hold planes of tokens
// must not be cut, and the 64 that cut a page of 128 take the bytes of all of it.
constexpr int64_t code_tile_tokens(const KvTier& tier, int64_t head_dim, int strips) {
  const int bits = tier.keys.scheme.bits > tier.values.scheme.bits ? tier.keys.scheme.bits : tier.values.scheme.bits;
  return max(tile_tokens(head_dim * bits / 8, strips), 64);
}

// Rows are those of a head of the cache: query r / G, head r % G of the group. A block takes 16 or 32 of them.
constexpr int strips_of(int64_t rows) { return rows > 16 ? 2 : 1; }

inline constexpr int kDecodeWarps = 4;
inline constexpr int kDecodeThreads = 32 * kDecodeWarps;
inline constexpr int kStages = 4;  // pieces of shared memory: keys or values of a tile

enum DecodeSource { kHighSource, kLowSource, kRecentSource, kNumSources };

// Shared memory of a block: where its parts begin.
struct DecodeShared {
  int stage_bytes;
  int queries;    // fragments of the queries
  int weights;    // [rows][tile] and padding
  int scratch;    // [warps][D] fp32 rows of queries
  int units;      // [rows] what a row's products are multiplied by
  int sums;       // [rows][key groups] of the queries
  int maxima;     // [warps][rows]
  int exponents;  // [warps] of the values' scales
  int totals;     // [warps][rows]
  int zeros;      // [warps][rows][value groups] sums of weights times zeros
  int scales;     // [value groups][tile] fp16 scales of values, if there are several groups
  int positions;  // [tile]
  int bytes;
};

struct DecodeSplits {
  int64_t of_source[kNumSources];  // most, known without the device
  int64_t total() const { return of_source[0] + of_source[1] + of_source[2]; }
};

inline DecodeSplits splits_of(const KvCacheParams& cache) {
  DecodeSplits splits = {};
  for (int name = 0; name < kNumTiers; ++name) {
    const KvTier& tier = cache.tiers[name];
    if (tier.page_counts != nullptr) splits.of_source[name] = most_splits(tier.table_width * cache.page_size);
  }
  splits.of_source[kRecentSource] = max(most_splits(cache.num_sinks + cache.window_size), 1);
  return splits;
}

inline int64_t scale_bytes_of_tile(const KvPages& pages, int64_t tile, int64_t head_dim) {
  const bool by_token = pages.scheme.axis == QuantAxis::kToken;
  const int64_t rows = by_token ? head_dim / pages.scheme.group : max(tile / pages.scheme.group, 1);
  return rows * (by_token ? tile : head_dim) * 2 * (pages.zero == nullptr ? 1 : 2);
}
constexpr int64_t groups_of(const KvPages& pages, int64_t head_dim) {
  return pages.coded && pages.scheme.axis == QuantAxis::kToken ? head_dim / pages.scheme.group : 1;
}

// Queries that meet codes are fp16 numbers. Rotated or scaled they are no longer exact, which counts where the cache is
// fp16 as well: there a second number holds what rounding left.
constexpr bool queries_have_rests(const KvCacheParams& cache) {
  return cache.dtype == DType::kFloat16 && (cache.rotates || cache.k_channel_scale != nullptr);
}

inline DecodeShared shared_of(const DecodeAttentionParams& p, int strips) {
  const KvCacheParams& cache = p.cache;
  const int64_t D = cache.head_dim, size = static_cast<int64_t>(size_of(cache.dtype)), rows = 16 * strips;
  int64_t tile = tile_tokens(D * size, strips), stage = tile * (D * size + 16), key_groups = 1, value_groups = 1;
  for (const KvTier& tier : cache.tiers) {
    if (tier.page_counts == nullptr || !tier.keys.coded || size == 4) continue;
    const int64_t tokens = code_tile_tokens(tier, D, strips);
    const int64_t value_tokens = tier.values.scheme.bits < 8 ? max(tokens, cache.page_size) : tokens;
    const int64_t key_scales = scale_bytes_of_tile(tier.keys, tokens, D);
    const int64_t value_scales = scale_bytes_of_tile(tier.values, tokens, D);
    const bool by_token = tier.values.scheme.axis == QuantAxis::kToken;  // then they lie beside the keys
    stage = max(stage, tokens * D * tier.keys.scheme.bits / 8 + key_scales + (by_token ? value_scales : 0));
    stage = max(stage, value_tokens * D * tier.values.scheme.bits / 8 + (by_token ? 0 : value_scales));
    tile = max(tile, tokens);
    key_groups = max(key_groups, groups_of(tier.keys, D));
    value_groups = max(value_groups, groups_of(tier.values, D));
  }
  DecodeShared shared = {};
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t at = used;
    used += round_up(bytes, 128);
    return static_cast<int>(at);
  };
  shared.stage_bytes = static_cast<int>(round_up(stage, 128));
  take(int64_t{shared.stage_bytes} * kStages);
  shared.queries = take(rows * D * (size == 4 || queries_have_rests(cache) ? 4 : 2));
  shared.weights = take(rows * (tile * size + (size == 4 ? 16 : 32)));
  shared.scratch = take(kDecodeWarps * D * 4);
  shared.units = take(rows * 4);
  shared.sums = take(rows * key_groups * 4);
  shared.maxima = take(kDecodeWarps * rows * 4);
  shared.exponents = take(kDecodeWarps * 4);
  shared.totals = take(kDecodeWarps * rows * 4);
  shared.zeros = take(kDecodeWarps * rows * value_groups * 4);
  shared.scales = take(value_groups > 1 ? value_groups * tile * 2 : 0);
  shared.positions = take(tile * 4);
  shared.bytes = static_cast<int>(used);
  return shared;
}

}  // namespace tokcore::kv_cache
