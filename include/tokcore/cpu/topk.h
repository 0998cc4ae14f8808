// The k greatest of a stream of (value, index) pairs, NaN above all, equal values by lower index: an order that is
// total, so that the result does not depend on the order in which pairs come.
#pragma once

#include <cstdint>

namespace tokcore::cpu::TOKCORE_ISA {

// Value and index in one integer whose order is the rank.
using RankKey = uint64_t;

inline RankKey rank_key(float value, uint32_t index) {
  value += 0.0f;  // -0 ranks with +0
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (value != value) {
    bits = 0xffffffff;
  } else {
    bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000;
  }
  return static_cast<RankKey>(bits) << 32 | static_cast<uint32_t>(~index);
}
inline uint32_t index_of(RankKey key) { return ~static_cast<uint32_t>(key); }
inline float value_of(RankKey key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  if (bits == 0xffffffff) return __builtin_nanf("");
  bits = (bits >> 31) != 0 ? bits & 0x7fffffff : ~bits;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// keys: descending, k of them, 0 where nothing came yet.
inline void insert_ranked(RankKey* keys, int64_t k, RankKey key) {
  if (key <= keys[k - 1]) return;
  // Without a branch on where the key belongs, which nobody can predict.
  for (int64_t i = k - 1; i > 0; --i) {
    const RankKey above = keys[i - 1] < key ? keys[i - 1] : key;
    keys[i] = keys[i] < above ? above : keys[i];
  }
  keys[0] = keys[0] < key ? key : keys[0];
}

}  // namespace tokcore::cpu::TOKCORE_ISA
