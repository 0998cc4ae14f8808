// The warp-wide intrinsics of CUDA. The last parameter is where they stand in the source: lanes that meet must stand at
// the same place, and messages name it.
#pragma once

#include <cstring>
#include <source_location>

#include "simt/thread.h"
#include "simt/warp_ops.h"

namespace tokcore::simt::internal {

template <class T>
T shuffle_value(WarpOp op, unsigned mask, T value, int argument, int width, const std::source_location& where) {
  static_assert(sizeof(T) <= 8, "CUDA shuffles values of up to 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const void*>(&value), sizeof(T));  // pairs of bf16 are no trivial types
  bits = shuffle(op, mask, bits, argument, width, where);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

template <class T>
uint64_t match_bits(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA matches values of 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

}  // namespace tokcore::simt::internal

#define TOKCORE_SIMT_HERE const std::source_location& where = std::source_location::current()

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, TOKCORE_SIMT_HERE) {
  return tokcore::simt::internal::shuffle_value(tokcore::simt::WarpOp::kShuffle, mask, value, lane, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, TOKCORE_SIMT_HERE) {
  return tokcore::simt::internal::shuffle_value(tokcore::simt::WarpOp::kShuffleUp, mask, value, static_cast<int>(delta),
                                                width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, TOKCORE_SIMT_HERE) {
  return tokcore::simt::internal::shuffle_value(tokcore::simt::WarpOp::kShuffleDown, mask, value,
                                                static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, TOKCORE_SIMT_HERE) {
  return tokcore::simt::internal::shuffle_value(tokcore::simt::WarpOp::kShuffleXor, mask, value, lane_mask, width,
                                                where);
}

inline void __syncwarp(unsigned mask = tokcore::simt::kFullMask, TOKCORE_SIMT_HERE) {
  tokcore::simt::sync_warp(mask, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, TOKCORE_SIMT_HERE) {
  return tokcore::simt::vote(tokcore::simt::WarpOp::kBallot, mask, predicate != 0, where);
}
inline int __all_sync(unsigned mask, int predicate, TOKCORE_SIMT_HERE) {
  return static_cast<int>(tokcore::simt::vote(tokcore::simt::WarpOp::kAll, mask, predicate != 0, where));
}
inline int __any_sync(unsigned mask, int predicate, TOKCORE_SIMT_HERE) {
  return static_cast<int>(tokcore::simt::vote(tokcore::simt::WarpOp::kAny, mask, predicate != 0, where));
}
// The lanes that happen to be converged. This one alone is a legal answer, and the one that shows a misuse as a mask.
inline unsigned __activemask() { return 1u << tokcore::simt::this_thread().lane; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value, TOKCORE_SIMT_HERE) {
  return tokcore::simt::match(tokcore::simt::WarpOp::kMatchAny, mask, tokcore::simt::internal::match_bits(value),
                              where);
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate, TOKCORE_SIMT_HERE) {
  const unsigned lanes =
      tokcore::simt::match(tokcore::simt::WarpOp::kMatchAll, mask, tokcore::simt::internal::match_bits(value), where);
  *predicate = lanes != 0 ? 1 : 0;
  return lanes;
}

#define TOKCORE_SIMT_REDUCE(name, op)                                                   \
  inline unsigned name(unsigned mask, unsigned value, TOKCORE_SIMT_HERE) {              \
    return tokcore::simt::reduce(tokcore::simt::WarpOp::op, mask, value, false, where); \
  }
#define TOKCORE_SIMT_REDUCE_SIGNED(name, op)                                                                \
  TOKCORE_SIMT_REDUCE(name, op)                                                                             \
  inline int name(unsigned mask, int value, TOKCORE_SIMT_HERE) {                                            \
    return static_cast<int>(                                                                                \
        tokcore::simt::reduce(tokcore::simt::WarpOp::op, mask, static_cast<unsigned>(value), true, where)); \
  }
TOKCORE_SIMT_REDUCE_SIGNED(__reduce_add_sync, kReduceAdd)
TOKCORE_SIMT_REDUCE_SIGNED(__reduce_min_sync, kReduceMin)
TOKCORE_SIMT_REDUCE_SIGNED(__reduce_max_sync, kReduceMax)
TOKCORE_SIMT_REDUCE(__reduce_and_sync, kReduceAnd)
TOKCORE_SIMT_REDUCE(__reduce_or_sync, kReduceOr)
TOKCORE_SIMT_REDUCE(__reduce_xor_sync, kReduceXor)
#undef TOKCORE_SIMT_REDUCE
#undef TOKCORE_SIMT_REDUCE_SIGNED
