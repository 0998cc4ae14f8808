// mbarrier objects: arrivals, transaction bytes, phases. Addresses are those that PTX sees (memory.h): of this block,
// or, where an instruction allows it, of another block of the cluster.
#pragma once

#include <cstdint>
#include <source_location>

#include "simt/memory.h"

namespace tokcore::simt {

void mbarrier_init(uint32_t address, uint32_t count);
void mbarrier_inval(uint32_t address);

// The objects that this thread initialised may be used by TMA and by other blocks from here on
// (fence.mbarrier_init, fence.proxy.async, barrier.cluster.arrive).
void publish_mbarriers();

void mbarrier_arrive(uint32_t address, uint32_t count = 1);
void mbarrier_expect_tx(uint32_t address, uint32_t bytes);
void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes);
void mbarrier_complete_tx(uint32_t address, uint32_t bytes);

// Whether the phase of that parity is complete. Gives way to other threads if it is not, as a loop of try_wait needs.
bool mbarrier_test_wait(uint32_t address, uint32_t parity);

void mbarrier_wait(uint32_t address, uint32_t parity);

// For TMA: fail()s unless the object can take transaction bytes.
void check_mbarrier_for_tma(uint32_t address, const char* primitive);

inline void mbarrier_init(const void* barrier, uint32_t count) { mbarrier_init(shared_address(barrier), count); }
inline void mbarrier_inval(const void* barrier) { mbarrier_inval(shared_address(barrier)); }
inline void mbarrier_arrive(const void* barrier) { mbarrier_arrive(shared_address(barrier)); }
inline void mbarrier_expect_tx(const void* barrier, uint32_t bytes) {
  mbarrier_expect_tx(shared_address(barrier), bytes);
}
inline void mbarrier_arrive_expect_tx(const void* barrier, uint32_t bytes) {
  mbarrier_arrive_expect_tx(shared_address(barrier), bytes);
}
inline bool mbarrier_test_wait(const void* barrier, uint32_t parity) {
  return mbarrier_test_wait(shared_address(barrier), parity);
}
inline void mbarrier_wait(const void* barrier, uint32_t parity) { mbarrier_wait(shared_address(barrier), parity); }

// mapa + the instruction on the object at the same place of another block.
inline void mbarrier_arrive_remote(const void* barrier, uint32_t rank) {
  mbarrier_arrive(map_shared(shared_address(barrier), rank));
}
inline void mbarrier_arrive_expect_tx_remote(const void* barrier, uint32_t bytes, uint32_t rank) {
  mbarrier_arrive_expect_tx(map_shared(shared_address(barrier), rank), bytes);
}
inline void mbarrier_complete_tx_remote(const void* barrier, uint32_t bytes, uint32_t rank) {
  mbarrier_complete_tx(map_shared(shared_address(barrier), rank), bytes);
}

}  // namespace tokcore::simt
