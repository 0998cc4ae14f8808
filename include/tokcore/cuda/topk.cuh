// The k greatest of a stream of (value, index) pairs, NaN above all, equal values by lower index: an order that is
// total, so that the result does not depend on the order in which pairs come.
#pragma once

#include "tokcore/cuda/reduce.cuh"

namespace tokcore::cuda {

// Value and index in one integer whose order is the rank; 0 ranks below everything.
using RankKey = uint64_t;

TOKCORE_DEVICE RankKey rank_key(float value, uint32_t index) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 ranks with +0
  const uint32_t ordered = value != value ? 0xffffffffu : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<RankKey>(ordered) << 32 | static_cast<uint32_t>(~index);
}
TOKCORE_DEVICE uint32_t index_of(RankKey key) { return ~static_cast<uint32_t>(key); }
TOKCORE_DEVICE float value_of(RankKey key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  if (bits == 0xffffffffu) return __uint_as_float(0x7fffffffu);
  return __uint_as_float((bits >> 31) != 0 ? bits & 0x7fffffffu : ~bits);
}

// The value that a newcomer must reach to be among k keys in descending order: -inf while there are fewer.
TOKCORE_DEVICE float value_to_beat(const RankKey* keys, int64_t k) {
  return keys[k - 1] == 0 ? __uint_as_float(0xff800000u) : value_of(keys[k - 1]);
}

// Inserts `key` into `keys`, k of them in descending order, by all lanes of a warp together.
TOKCORE_DEVICE void insert_ranked(RankKey* keys, int64_t k, RankKey key, int lane) {
  if (key <= keys[k - 1]) return;
  // From the end, 32 entries at a time: those below the key move down by one.
  for (int64_t first = (k - 1) / 32 * 32; first >= 0; first -= 32) {
    const int64_t i = first + lane;
    const bool moves = i < k && keys[i] < key;
    const RankKey before = moves && i > 0 ? keys[i - 1] : ~RankKey{0};
    __syncwarp();
    if (moves) keys[i] = before < key ? before : key;
    __syncwarp();
    if (__any_sync(kAllLanes, i < k && !moves)) return;  // the key's place was here
  }
}

}  // namespace tokcore::cuda
