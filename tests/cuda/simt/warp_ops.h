// Shuffles and votes of a warp, without their CUDA spelling (cuda_warp.h).
#pragma once

#include <cstdint>
#include <source_location>

namespace tokcore::simt {

enum class WarpOp {
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kSync,
  kBallot,
  kAll,
  kAny,
  kMatchAny,
  kMatchAll,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
};

// The value of the lane that `op` and `argument` select within this lane's group of `width` lanes, or this lane's own
// where that lies outside of the group.
uint64_t shuffle(WarpOp op, unsigned mask, uint64_t value, int argument, int width, const std::source_location& where);

void sync_warp(unsigned mask, const std::source_location& where);

// kBallot: the lanes with a true predicate. kAll, kAny: 0 or 1.
unsigned vote(WarpOp op, unsigned mask, bool predicate, const std::source_location& where);

// kMatchAny: the lanes with this lane's value. kMatchAll: the mask if all values are equal, otherwise 0.
unsigned match(WarpOp op, unsigned mask, uint64_t value, const std::source_location& where);

// Of 32-bit integers; kReduceMin and kReduceMax compare them as signed or as unsigned ones.
uint32_t reduce(WarpOp op, unsigned mask, uint32_t value, bool is_signed, const std::source_location& where);

}  // namespace tokcore::simt
