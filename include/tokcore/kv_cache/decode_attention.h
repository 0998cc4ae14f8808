// Attention of a few new queries over a KV cache: all tiers, the window and the sinks in one call.
//
// Query i of a sequence of n tokens stands at position n - M + i and sees the positions up to its own; with a window of
// w, those after its own minus w, and the sinks. The cache is cut into splits of a fixed number of tokens; each gives
// an unnormalised output with the maximum and sum of its scores, and these are merged in order.
//
// Letters: B sequences, M queries of each, H query heads, Hkv heads of the cache, G = H / Hkv, D channels.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore {

// As tree_links makes them.
struct DecodeTrees {
  const uint64_t* ancestors;  // [B, M, words]: bit j of a node's words: node j is the node itself or an ancestor of it
  const int32_t* depths;      // [B, M]
  const int32_t* counts;      // [B] nodes, in [0, min(M, length)]; further queries give zeros and -inf
  int64_t words;              // ceil(M / 64)
};

struct DecodeAttentionParams {
  KvCacheParams cache;                                       // read only
  const void* q;                                             // [B, M, H, D] of the cache's dtype
  int64_t stride_q_sequence, stride_q_query, stride_q_head;  // elements
  int64_t num_queries;                                       // M
  int64_t num_q_heads;                                       // H
  float scale;
  float softcap;      // 0: none
  int64_t window;     // 0: none
  DecodeTrees trees;  // null pointers: the queries of every sequence are a chain
  void* out;          // [B, M, H, D] contiguous, dtype of q
  float* lse;         // [B, H, M] contiguous, natural logarithm; or null
};

void run_decode_attention_cpu(const DecodeAttentionParams& params, const cpu::Threads& threads);

}  // namespace tokcore
