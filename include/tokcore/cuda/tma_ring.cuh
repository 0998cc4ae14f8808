// A ring of slots of shared memory: one thread fills them by TMA, warps use them and give them back.
#pragma once

#include <cutlass/arch/barrier.h>

#include "tokcore/cuda/kernel.h"

namespace tokcore::cuda {

using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;
using ArrivalBarrier = cutlass::arch::ClusterBarrier;

// Where in the ring someone is, who takes its slots in order. The phase changes with every round.
template <int kSlots>
struct RingPlace {
  int slot = 0;
  uint32_t phase = 0;

  TOKCORE_DEVICE void advance() {
    if (++slot == kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
  TOKCORE_DEVICE RingPlace next() const {
    RingPlace place = *this;
    place.advance();
    return place;
  }
};

// The slots lie one after the other from `shared` on, after them the barriers.
template <int kSlots_, int kSlotBytes_>
class TmaRing {
 public:
  static constexpr int kSlots = kSlots_;
  static constexpr int kSlotBytes = kSlotBytes_;
  static constexpr int kBytes = kSlots * kSlotBytes + 2 * kSlots * static_cast<int>(sizeof(uint64_t));
  using Place = RingPlace<kSlots>;

  TOKCORE_DEVICE explicit TmaRing(unsigned char* shared) : shared_(shared) {}

  // By one thread; then cutlass::arch::fence_barrier_init() and a barrier of the block.
  TOKCORE_DEVICE void init(uint32_t num_warps) const {
    for (int slot = 0; slot < kSlots; ++slot) {
      TransactionBarrier::init(full(slot), 1);
      ArrivalBarrier::init(empty(slot), num_warps);
    }
  }
  TOKCORE_DEVICE unsigned char* slot(const Place& place) const { return shared_ + place.slot * kSlotBytes; }

  // The thread that fills: waits for the slot, which every warp must have given back; then either starts copies of
  // kSlotBytes that complete on full(place), or says that there is nothing to copy.
  TOKCORE_DEVICE void claim(const Place& place) const { ArrivalBarrier::wait(empty(place.slot), place.phase ^ 1); }
  TOKCORE_DEVICE void expect_copies(const Place& place) const {
    TransactionBarrier::arrive_and_expect_tx(full(place.slot), kSlotBytes);
  }
  TOKCORE_DEVICE void expect_nothing(const Place& place) const { TransactionBarrier::arrive(full(place.slot)); }
  TOKCORE_DEVICE uint64_t* full(const Place& place) const { return full(place.slot); }

  // Every warp that uses: waits until the slot is filled, and gives it back once all of its lanes are done with it.
  TOKCORE_DEVICE void wait(const Place& place) const { TransactionBarrier::wait(full(place.slot), place.phase); }
  TOKCORE_DEVICE void give_back(const Place& place) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ArrivalBarrier::arrive(empty(place.slot));
  }

 private:
  TOKCORE_DEVICE uint64_t* full(int slot) const {
    return reinterpret_cast<uint64_t*>(shared_ + kSlots * kSlotBytes) + slot;
  }
  TOKCORE_DEVICE uint64_t* empty(int slot) const { return full(kSlots + slot); }

  unsigned char* shared_;
};

}  // namespace tokcore::cuda
