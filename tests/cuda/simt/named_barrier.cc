#include "simt/named_barrier.h"

#include <array>
#include <string>

#include "simt/thread.h"

namespace tokcore::simt {
namespace {

constexpr uint32_t kNumBarriers = 16;
constexpr uint32_t kWarpThreads = 32;

struct Barrier {
  uint64_t phase = 0;    // number of completed phases
  uint32_t count = 0;    // of the open phase, as its first warp said
  uint32_t arrived = 0;  // threads
  uint32_t warps = 0;    // bit mask of those that arrived
};

class NamedBarriers : public BlockState {
 public:
  std::array<Barrier, kNumBarriers> barriers;
};

struct Arrival {
  uint32_t id, count;
};

std::string name_of(const char* primitive, uint32_t id, uint32_t count) {
  return std::string(primitive) + " " + std::to_string(id) + ", " + std::to_string(count);
}

void check(const char* primitive, uint32_t id, uint32_t count) {
  if (id >= kNumBarriers) fail(name_of(primitive, id, count) + ": barriers are numbered 0 to 15");
  if (id == 0) fail(name_of(primitive, id, count) + ": barrier 0 is that of __syncthreads");
  const auto threads = static_cast<uint32_t>(this_block().num_threads);
  if (count == 0 || count % kWarpThreads != 0 || count > threads) {
    fail(name_of(primitive, id, count) + ": the count must be a multiple of 32 up to the " + std::to_string(threads) +
         " threads of the block");
  }
}

// The warp's threads arrive together. Returns the phase that they arrived at.
uint64_t arrive(const char* primitive, uint32_t id, uint32_t count) {
  static const char key = 0;
  check(primitive, id, count);
  Barrier& barrier = this_block().state<NamedBarriers>().barriers[id];
  const uint32_t warp_bit = 1u << this_thread().warp;
  Arrival mine{id, count};
  uint64_t phase = 0;
  struct Slot {
    Arrival arrival;
    uint64_t* phase;
  } slot{mine, &phase};
  warp_collective(&key, primitive, kFullMask, &slot, [&](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      const Arrival& other = static_cast<Slot*>(lanes[lane])->arrival;
      if (other.id != id || other.count != count) {
        fail(name_of(primitive, id, count) + ": lane " + std::to_string(lane) + " of the warp is at " +
             name_of(primitive, other.id, other.count));
      }
    }
    if (barrier.arrived != 0 && barrier.count != count) {
      fail(name_of(primitive, id, count) + ": other warps of this phase gave the count " +
           std::to_string(barrier.count));
    }
    if ((barrier.warps & warp_bit) != 0)
      fail(name_of(primitive, id, count) + ": this warp arrived at this phase before");
    for (int lane = 0; lane < 32; ++lane) *static_cast<Slot*>(lanes[lane])->phase = barrier.phase;
    barrier.count = count;
    barrier.arrived += kWarpThreads;
    barrier.warps |= warp_bit;
    if (barrier.arrived == count) barrier = {barrier.phase + 1, 0, 0, 0};
  });
  return phase;
}

}  // namespace

void named_barrier_sync(uint32_t id, uint32_t count) {
  constexpr const char* kName = "bar.sync";
  const uint64_t phase = arrive(kName, id, count);
  const Barrier& barrier = this_block().state<NamedBarriers>().barriers[id];
  wait_until([&] { return barrier.phase != phase; },
             [&] {
               return name_of(kName, id, count) + " in phase " + std::to_string(phase) + ": " +
                      std::to_string(barrier.arrived) + " threads have arrived";
             });
}

void named_barrier_arrive(uint32_t id, uint32_t count) { arrive("bar.arrive", id, count); }

}  // namespace tokcore::simt
