#include "simt/warp_ops.h"

#include <algorithm>
#include <bit>
#include <string>

#include "simt/thread.h"

namespace tokcore::simt {
namespace {

constexpr const char* kNames[] = {"__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",
                                  "__syncwarp",        "__ballot_sync",     "__all_sync",        "__any_sync",
                                  "__match_any_sync",  "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync",
                                  "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};

// Name and identity of a primitive.
const char* const& entry(WarpOp op) { return kNames[static_cast<int>(op)]; }

template <class F>
void for_each_lane(unsigned mask, const F& f) {
  for (; mask != 0; mask &= mask - 1) f(std::countr_zero(mask));
}

struct ShuffleSlot {
  uint64_t value;
  uint64_t result;
  int source;
};

// Lane that this one reads; itself where the selected one lies outside of the group.
int source_lane(WarpOp op, int lane, int argument, int width) {
  const int first = lane & ~(width - 1);
  const int last = first + width - 1;
  switch (op) {
    case WarpOp::kShuffleUp:
      return lane - argument < first ? lane : lane - argument;
    case WarpOp::kShuffleDown:
      return lane + argument > last ? lane : lane + argument;
    case WarpOp::kShuffleXor:
      return (lane ^ argument) > last ? lane : lane ^ argument;
    default:
      return first + (argument & (width - 1));
  }
}

}  // namespace

uint64_t shuffle(WarpOp op, unsigned mask, uint64_t value, int argument, int width, const std::source_location& where) {
  const int lane = this_thread().lane;
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail(describe_site(entry(op), where) + ": width " + std::to_string(width) + " is no power of two up to 32");
  }
  ShuffleSlot slot{value, value, source_lane(op, lane, argument, width)};
  if ((mask >> slot.source & 1) == 0) {
    fail(describe_site(entry(op), where) + ": reads lane " + std::to_string(slot.source) +
         ", which is not in the mask");
  }
  warp_collective(
      &entry(op), entry(op), mask, &slot,
      [mask](void* const* lanes) {
        for_each_lane(mask, [&](int i) {
          auto& mine = *static_cast<ShuffleSlot*>(lanes[i]);
          mine.result = static_cast<const ShuffleSlot*>(lanes[mine.source])->value;
        });
      },
      where);
  return slot.result;
}

void sync_warp(unsigned mask, const std::source_location& where) {
  warp_collective(&entry(WarpOp::kSync), entry(WarpOp::kSync), mask, nullptr, [](void* const*) {}, where);
}

unsigned vote(WarpOp op, unsigned mask, bool predicate, const std::source_location& where) {
  unsigned slot = predicate ? 1 : 0;
  warp_collective(
      &entry(op), entry(op), mask, &slot,
      [mask, op](void* const* lanes) {
        unsigned ballot = 0;
        for_each_lane(mask, [&](int i) { ballot |= *static_cast<const unsigned*>(lanes[i]) << i; });
        const unsigned result = op == WarpOp::kBallot ? ballot : op == WarpOp::kAll ? ballot == mask : ballot != 0;
        for_each_lane(mask, [&](int i) { *static_cast<unsigned*>(lanes[i]) = result; });
      },
      where);
  return slot;
}

unsigned match(WarpOp op, unsigned mask, uint64_t value, const std::source_location& where) {
  struct Slot {
    uint64_t value;
    unsigned equal;
  } slot{value, 0};
  warp_collective(
      &entry(op), entry(op), mask, &slot,
      [mask](void* const* lanes) {
        for_each_lane(mask, [&](int i) {
          auto& mine = *static_cast<Slot*>(lanes[i]);
          for_each_lane(mask, [&](int j) {
            mine.equal |= static_cast<unsigned>(static_cast<const Slot*>(lanes[j])->value == mine.value) << j;
          });
        });
      },
      where);
  return op == WarpOp::kMatchAny || slot.equal == mask ? slot.equal : 0;
}

uint32_t reduce(WarpOp op, unsigned mask, uint32_t value, bool is_signed, const std::source_location& where) {
  const auto combine = [op, is_signed](uint32_t a, uint32_t b) -> uint32_t {
    const bool less = is_signed ? static_cast<int32_t>(a) < static_cast<int32_t>(b) : a < b;
    switch (op) {
      case WarpOp::kReduceAdd:
        return a + b;
      case WarpOp::kReduceMin:
        return less ? a : b;
      case WarpOp::kReduceMax:
        return less ? b : a;
      case WarpOp::kReduceAnd:
        return a & b;
      case WarpOp::kReduceOr:
        return a | b;
      default:
        return a ^ b;
    }
  };
  warp_collective(
      &entry(op), entry(op), mask, &value,
      [mask, &combine](void* const* lanes) {
        const int first = std::countr_zero(mask);
        uint32_t result = *static_cast<const uint32_t*>(lanes[first]);
        for_each_lane(mask & (mask - 1),
                      [&](int i) { result = combine(result, *static_cast<const uint32_t*>(lanes[i])); });
        for_each_lane(mask, [&](int i) { *static_cast<uint32_t*>(lanes[i]) = result; });
      },
      where);
  return value;
}

}  // namespace tokcore::simt
