// bar.sync and bar.arrive: the block's barriers 1 to 15. Barrier 0 is __syncthreads.
#pragma once

#include <cstdint>

namespace tokcore::simt {

// Called by all lanes of a warp; `count` is the number of threads that sync and arrive in one phase.
void named_barrier_sync(uint32_t id, uint32_t count);
void named_barrier_arrive(uint32_t id, uint32_t count);

}  // namespace tokcore::simt
