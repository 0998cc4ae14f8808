// Appending tokens to a KV cache: new tokens go into the window, and whole pages leave it for a tier.
//
// A window holds at least the `residual` newest tokens and less than `residual` + page_size. What leaves it fills the
// high tier first, then the low one; without a tier it is dropped.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore {

// What one sequence gets.
struct KvAppendRow {
  int64_t sequence;
  int64_t old_length, new_length;
  int64_t old_start, new_start;   // of the window
  const int64_t* token_of;        // [new_length - old_length] the row of k for each new position
  int64_t first_page[kNumTiers];  // pages in use before
  int64_t pages_to_write[kNumTiers];
};

struct KvAppendParams {
  KvCacheParams cache;
  const void* k;  // [T, Hkv, D] of the cache's dtype
  const void* v;
  int64_t stride_k_token, stride_k_head;  // elements
  int64_t stride_v_token, stride_v_head;
  const KvAppendRow* rows;
  int64_t num_rows;
};

void run_kv_append_cpu(const KvAppendParams& params, const cpu::Threads& threads);

}  // namespace tokcore
