// What the queries of one sequence can see of its tokens.
//
// The queries' own tokens are the last ones of the cache. In a chain, query i stands at position first_query + i and
// sees every token up to its own. In a tree they are nodes: the token in place first_query + j is node j, it stands at
// position first_query + depth of j, and a node sees it if it is one of its ancestors. With a window, positions in (own
// - window, own] are seen, and sinks.
#pragma once

#include <cstdint>

namespace tokcore::cpu::TOKCORE_ISA {

struct Sight {
  int64_t first_query, last_query;  // places of the first and the last of the queries' own tokens
  int64_t window;                   // 0: none
  int64_t num_sinks;
  const uint64_t* ancestors;  // [M, words], or null: a chain
  const int32_t* depths;      // [M]
  int64_t words;

  // Whether query i sees the token in this place of the cache.
  bool sees(int64_t place, int64_t i) const {
    int64_t own = first_query + i, position = place;
    if (ancestors != nullptr) {
      own = first_query + depths[i];
      const int64_t node = place - first_query;
      if (node >= 0) {
        if ((ancestors[i * words + node / 64] >> node % 64 & 1) == 0) return false;
        position = first_query + depths[node];
      }
    }
    return position <= own && (window == 0 || position > own - window || position < num_sinks);
  }

  // The same for 16 places from `place` on, a bit each, without a window.
  uint32_t seen_bits(int64_t place, int64_t i) const {
    const int64_t before = first_query - place + (ancestors == nullptr ? i + 1 : 0);
    if (before >= 16) return 0xffff;
    const int64_t ahead = before > 0 ? before : 0;
    const uint32_t low = (1u << ahead) - 1;
    if (ancestors == nullptr) return low;
    const int64_t node = before > 0 ? 0 : -before, word = node / 64, offset = node % 64;
    if (word >= words) return low;
    const uint64_t* row = ancestors + i * words + word;
    uint64_t bits = row[0] >> offset;
    if (offset > 48 && word + 1 < words) bits |= row[1] << (64 - offset);
    return (low | static_cast<uint32_t>(bits & 0xffff) << ahead) & 0xffff;
  }

  // Bounds for places low to high; a tree's nodes stand at their place at most.
  bool all_see(int64_t low, int64_t high) const {
    return high <= first_query && (window == 0 || low > last_query - window || high < num_sinks);
  }
  bool none_sees(int64_t low, int64_t high) const {
    return low > last_query || (window != 0 && high <= first_query - window && low >= num_sinks);
  }
};

}  // namespace tokcore::cpu::TOKCORE_ISA
