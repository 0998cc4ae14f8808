// The split that a block attends: which tokens it holds, where they lie, who sees them.
#pragma once

#include "kv_cache/decode_attention_plan_cuda.h"
#include "kv_cache/decode_sight_cuda.cuh"
#include "kv_cache/pages_cuda.cuh"

namespace tokcore::kv_cache {

struct DecodeWork {
  DecodeAttentionParams p;
  DecodeSplits splits;
  DecodeShared shared;
  int rows;        // M G of a head of the cache
  int row_blocks;  // of 16 or 32
  int most_splits;
  float norm;      // rotation_norm(D)
  float2* states;  // [B, Hkv, splits, rows] maximum and sum; {0, 0}: nothing was seen
  float* outputs;  // [B, Hkv, splits, rows, D] unnormalised; as quantized where the split is of codes
};

// The values of one sequence that kernels follow.
struct SequenceState {
  int length, start;  // tokens, first position of the window
  int counts[kNumTiers];
  DecodeSight sight;
  bool broken;  // some of them were out of range, and are not used

  TOKCORE_DEVICE SequenceState(const DecodeAttentionParams& p, int64_t b) {
    const KvCacheParams& cache = p.cache;
    constexpr int kMostTokens = 1 << 30;
    length = cache.lengths[b];
    start = cache.window_starts[b];
    broken = length < 0 || length > kMostTokens || start > kMostTokens ||
             start < max(cache.num_sinks, length - cache.window_size);
#pragma unroll
    for (int name = 0; name < kNumTiers; ++name) {
      const KvTier& tier = cache.tiers[name];
      counts[name] = tier.page_counts == nullptr ? 0 : tier.page_counts[b];
      broken = broken || counts[name] < 0 || counts[name] > tier.table_width;
    }
    const int M = static_cast<int>(p.num_queries);
    sight.num_queries = p.trees.counts == nullptr ? M : p.trees.counts[b];
    broken = broken || (p.trees.counts != nullptr &&
                        (sight.num_queries < 0 || sight.num_queries > M || sight.num_queries > length));
    sight.first_query = length - sight.num_queries;
    sight.window = p.window;
    sight.num_sinks = static_cast<int>(cache.num_sinks);
    sight.words = static_cast<int>(p.trees.words);
    sight.ancestors = p.trees.ancestors == nullptr ? nullptr : p.trees.ancestors + b * M * p.trees.words;
    sight.depths = p.trees.depths == nullptr ? nullptr : p.trees.depths + b * M;
  }
};

inline constexpr int kNoToken = -1, kLostToken = -2;  // instead of a position: none, or one of a page that is nowhere

struct DecodeSplit {
  int64_t b, head;
  int index;      // of all splits of the head
  int row_block;  // of the rows
  int source;     // DecodeSource
  bool coded;
  int first, count;  // tokens of the source
  int sinks;         // of the recent source: tokens that are sinks
  int window_first;  // position of the first token after them
  int page_shift;    // page_size is a power of two

  TOKCORE_DEVICE DecodeSplit(const DecodeWork& work, int64_t block) {
    row_block = static_cast<int>(block % work.row_blocks);
    index = static_cast<int>(block / work.row_blocks % work.most_splits);
    const int64_t item = block / work.row_blocks / work.most_splits;
    b = item / work.p.cache.num_heads;
    head = item % work.p.cache.num_heads;
    source = kHighSource;
    first = index;  // for now: which split of its source
    for (; source < kRecentSource && first >= work.splits.of_source[source]; ++source) {
      first -= static_cast<int>(work.splits.of_source[source]);
    }
    page_shift = __ffs(static_cast<int>(work.p.cache.page_size)) - 1;
    coded = source != kRecentSource && work.p.cache.tiers[source].keys.coded;
  }

  // Finds the tokens; false if there are none.
  TOKCORE_DEVICE bool open(const DecodeWork& work, const SequenceState& state) {
    const KvCacheParams& cache = work.p.cache;
    const DecodeSight& sight = state.sight;
    int64_t tokens, unit = 1;
    if (source == kRecentSource) {
      sinks = state.length < cache.num_sinks ? state.length : static_cast<int>(cache.num_sinks);
      window_first = state.start < state.length ? state.start : state.length;
      tokens = sinks + state.length - window_first;
    } else {
      unit = cache.page_size;
      // Registers cannot be indexed.
      tokens = (source == kHighSource ? state.counts[kHighTier] : state.counts[kLowTier]) * unit;
    }
    const int64_t size = split_tokens(tokens, unit);
    int64_t begin = first * size, end = begin + size < tokens ? begin + size : tokens;
    if (source != kRecentSource && cache.tiers[source].positions == nullptr && sight.window != 0) {
      // Pages whose positions no window reaches.
      const int64_t unseen = sight.first_query - sight.window + 1 - cache.num_sinks;
      if (unseen > 0 && begin < unseen / unit * unit) begin = unseen / unit * unit;
    }
    first = static_cast<int>(begin);
    count = end > begin ? static_cast<int>(end - begin) : 0;
    return count > 0;
  }

  // Token j of the split, which has it. Of pages: where it lies among [P, Hkv, page_size], or -1 if that is nowhere.
  TOKCORE_DEVICE int64_t slot_of(const KvCacheParams& cache, const KvTier& tier, int j) const {
    const int token = first + j;
    const int page = tier.page_table[b * tier.table_width + (token >> page_shift)];
    if (page < 0 || page >= tier.num_pages) return -1;
    return ((page * cache.num_heads + head) << page_shift) + (token & ((1 << page_shift) - 1));
  }
  // Its place, or kNoToken past the end, or kLostToken. Listed positions are read only if `lists`.
  TOKCORE_DEVICE int place_of(const KvCacheParams& cache, int j, bool lists) const {
    if (j >= count) return kNoToken;
    const int token = first + j;
    if (source == kRecentSource) return token < sinks ? token : window_first + token - sinks;
    const KvTier& tier = cache.tiers[source];
    const int64_t slot = slot_of(cache, tier, j);
    if (slot < 0) return kLostToken;
    if (tier.positions == nullptr) return static_cast<int>(cache.num_sinks) + token;
    return lists ? page_position(tier, slot) : 0;
  }
  // Numbers of token j, or null.
  TOKCORE_DEVICE const unsigned char* row_of(const KvCacheParams& cache, bool keys, int j, int row_bytes) const {
    if (j >= count) return nullptr;
    if (source != kRecentSource) {
      const KvTier& tier = cache.tiers[source];
      const int64_t slot = slot_of(cache, tier, j);
      return slot < 0 ? nullptr : (keys ? tier.keys : tier.values).data + slot * row_bytes;
    }
    const int64_t item = b * cache.num_heads + head;
    const int token = first + j;
    if (token < sinks) {
      const void* sink = keys ? cache.sink_k : cache.sink_v;
      return static_cast<const unsigned char*>(sink) + (item * cache.num_sinks + token) * row_bytes;
    }
    const int64_t slot = (window_first + token - sinks) % cache.window_size;
    const void* window = keys ? cache.window_k : cache.window_v;
    return static_cast<const unsigned char*>(window) + (item * cache.window_size + slot) * row_bytes;
  }
};

}  // namespace tokcore::kv_cache
