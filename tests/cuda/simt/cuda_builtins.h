// The names that nvcc knows without a header. What is not here does not compile.
#pragma once

#include <cuda_runtime.h>

#include <source_location>

#include "simt/barrier.h"
#include "simt/cuda_math.h"
#include "simt/cuda_memory.h"
#include "simt/cuda_warp.h"
#include "simt/thread.h"

#define threadIdx (::tokcore::simt::this_thread().index)
#define blockIdx (::tokcore::simt::this_block().index)
#define blockDim (::tokcore::simt::this_block().dim)
#define gridDim (::tokcore::simt::this_block().grid)
inline constexpr int warpSize = 32;

// What tells nvcc how to compile a kernel means nothing here.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#undef __maxnreg__
#define __maxnreg__(...)

// Static shared memory would be an ordinary variable here, one per thread: TOKCORE_SHARED_MEMORY gives the dynamic one.
#undef __shared__
#define __shared__ static_assert(false, "take shared memory through TOKCORE_SHARED_MEMORY");

inline void __syncthreads(TOKCORE_SIMT_HERE) { tokcore::simt::block_barrier("__syncthreads", false, where); }
inline int __syncthreads_count(int predicate, TOKCORE_SIMT_HERE) {
  return tokcore::simt::block_barrier("__syncthreads_count", predicate != 0, where).count;
}
inline int __syncthreads_and(int predicate, TOKCORE_SIMT_HERE) {
  return tokcore::simt::block_barrier("__syncthreads_and", predicate != 0, where).all ? 1 : 0;
}
inline int __syncthreads_or(int predicate, TOKCORE_SIMT_HERE) {
  return tokcore::simt::block_barrier("__syncthreads_or", predicate != 0, where).any ? 1 : 0;
}
