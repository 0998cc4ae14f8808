// Sorting the paged tokens of a cache between its two tiers: of every sequence and head the tokens of highest score go
// to the high tier, the others to the low one, each tier in ascending order of positions. No token is dropped.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore {

struct KvRetierParams {
  KvCacheParams cache;                                 // both tiers with positions
  const float* scores;                                 // [B, Hkv, N] by position
  int64_t stride_scores_sequence, stride_scores_head;  // elements; positions are dense
  int64_t num_positions;                               // N
  const int32_t* high_pages;                           // [B] pages of the high tier afterwards
};

void run_kv_retier_cpu(const KvRetierParams& params, const cpu::Threads& threads);

}  // namespace tokcore
