// Smaller primitives of sm_90: election, warp indices, register budgets, stmatrix, dependent grids.
#pragma once

#include <cstdint>

namespace tokcore::simt {

// elect.sync over the whole warp. Which lane is elected is up to the hardware: lane 0, lane 31 or any other, fixed by
// the policy's order and seed.
struct Election {
  uint32_t is_this_lane;
  uint32_t lane;  // the elected one
};
Election elect();
inline bool elect_one_sync() { return elect().is_this_lane != 0; }

// The warp's and warpgroup's number, broadcast from lane 0 of a converged warp. _warp_idx and _lane_idx need no warp.
int canonical_warp_idx_sync();
int canonical_warp_group_idx();
int canonical_warp_idx();
int canonical_lane_idx();

// setmaxnreg, by all warps of a warpgroup. The kernel begins with an equal share of the registers for each thread; an
// increase waits until the others have given up enough.
void increase_registers(uint32_t count);
void decrease_registers(uint32_t count);

// stmatrix: `sources` registers of each lane; lane l gives the address of row l % 8 of matrix l / 8.
void stmatrix(int matrices, bool transposed, void* row, const uint32_t* sources);

// griddepcontrol: without effect, for kernels run one after the other here, but no thread may be outside of a kernel.
void launch_dependent_grids();
void wait_on_dependent_grids();

}  // namespace tokcore::simt
