// What the queries of a sequence see on CUDA: as kv_cache/decode_sight.h.
#pragma once

#include "tokcore/cuda/kernel.h"
#include "tokcore/kv_cache/decode_attention.h"

namespace tokcore::kv_cache {

struct DecodeSight {
  int first_query;  // place of the first of the queries' own tokens
  int num_queries;  // of this sequence
  int64_t window;   // 0: none
  int num_sinks;
  const uint64_t* ancestors;  // [M, words], or null: a chain
  const int32_t* depths;      // [M]
  int words;

  // Whether query i, one of them, sees the token in this place.
  TOKCORE_DEVICE bool sees(int place, int i) const {
    int own = first_query + i, position = place;
    if (ancestors != nullptr) {
      own = first_query + depths[i];
      const int node = place - first_query;
      if (node >= 0) {
        if (node >= num_queries || (ancestors[i * words + node / 64] >> (node % 64) & 1) == 0) return false;
        position = first_query + depths[node];
      }
    }
    return position <= own && (window == 0 || position > own - window || position < num_sinks);
  }
  // Whether every query sees it for certain.
  TOKCORE_DEVICE bool all_see(int place) const {
    return window == 0 && place < first_query + (ancestors == nullptr ? 1 : 0);
  }
};

}  // namespace tokcore::kv_cache
