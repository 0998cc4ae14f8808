// Keeping the accepted path of a token tree in a KV cache, in all layers at once.
//
// The tree's nodes are the last tokens of a sequence, in the order of their numbers, from place `prefix` on. Accepted
// node i moves to place prefix + i; the others are dropped. Nodes in the sinks and the window move as they are. Where
// nodes have left the window already, whole pages that are kept stay pages: tokens that stay in a tier whose scales are
// by token keep their codes, others are quantized from the numbers they stand for; and the tokens of a page that is no
// longer full return to the window as the numbers they stand for.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore {

struct KvCompactPage {
  KvTierName tier;
  int64_t page;     // its number
  bool is_written;  // some token in it moves
};

// A sequence of a layer whose tokens move.
struct KvCompactRow {
  int64_t layer, sequence;
  int64_t prefix;  // tokens before the tree
  int64_t old_length, new_length;
  int64_t old_start, new_start;  // of the window
  const int32_t* nodes;          // [new_length - prefix] accepted, ascending
  int64_t first_page;            // by position: the one that holds `prefix`
  const KvCompactPage* pages;    // [num_pages] from first_page on
  int64_t num_pages;             // 0: the tree lies in sinks and window
};

struct KvCompactParams {
  KvCacheParams cache;  // the first layer; layer_of gives the others
  const KvCompactRow* rows;
  int64_t num_rows;
};

void run_kv_compact_cpu(const KvCompactParams& params, const cpu::Threads& threads);

}  // namespace tokcore
