// Running sums over the threads of a block.
#pragma once

#include "tokcore/cuda/reduce.cuh"

namespace tokcore::cuda {

// The sum of the values of all threads before this one; `total` becomes that of all. `shared` holds 32 numbers. Every
// thread of the block takes part; whole warps.
TOKCORE_DEVICE int block_sum_before(int value, int* shared, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(step));
    if (lane >= step) sum += other;
  }
  __syncthreads();  // `shared` is no longer read
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / 32; ++i) {
    if (i < warp) before += shared[i];
    total += shared[i];
  }
  return before + sum - value;
}

}  // namespace tokcore::cuda
