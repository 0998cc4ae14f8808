// The smaller primitives of sm_90 as kernels see them: election, indices, named barriers, stmatrix, clusters.
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/grid_dependency_control.h>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90.hpp>

#include <utility>

#include "bindings.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"

namespace tokcore::simt {
namespace {

using cuda::LaunchConfig;

// out [4, threads]: elect_one_sync, the elected lane, canonical_warp_idx_sync, canonical_warp_group_idx
__global__ void indices_kernel(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  cutlass::arch::wait_on_dependent_grids();
  out[thread] = static_cast<int>(cute::elect_one_sync());
  out[threads + thread] = static_cast<int>(cute::elect_one_leader_sync().leader_lane_id);
  out[2 * threads + thread] = cutlass::canonical_warp_idx_sync();
  out[3 * threads + thread] = cutlass::canonical_warp_group_idx();
  cutlass::arch::launch_dependent_grids();
}

// Warp 0 hands numbers to warps 1 and 2 through one buffer: "full" and "empty" are named barriers at which one side
// arrives and the other waits. out [rounds, 64]
__global__ void hand_over_kernel(int* out, int rounds) {
  using cutlass::arch::NamedBarrier;
  constexpr auto kFull = static_cast<cutlass::arch::ReservedNamedBarriers>(1);
  constexpr auto kEmpty = static_cast<cutlass::arch::ReservedNamedBarriers>(2);
  TOKCORE_SHARED_MEMORY(shared);
  auto* buffer = reinterpret_cast<int*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  for (int round = 0; round < rounds; ++round) {
    if (thread < 32) {
      if (round > 0) NamedBarrier::sync(96, kEmpty);
      buffer[thread] = 1000 * round + thread;
      NamedBarrier::arrive(96, kFull);
    } else {
      NamedBarrier::sync(96, kFull);
      out[round * 64 + thread - 32] = buffer[31 - thread % 32];
      if (round + 1 < rounds) NamedBarrier::arrive(96, kEmpty);
    }
  }
}

// out [2, 32, 4] = in [32, 4] through four 8 x 8 matrices: stored by stmatrix and read by ldmatrix, both straight, then
// both transposed.
__global__ void matrices_kernel(const uint32_t* in, uint32_t* out) {
  TOKCORE_SHARED_MEMORY(shared);
  const int lane = static_cast<int>(threadIdx.x);
  auto& row = *reinterpret_cast<cute::uint128_t*>(shared + lane * 16);
  const uint32_t* a = in + lane * 4;
  uint32_t* b = out + lane * 4;
  cute::SM90_U32x4_STSM_N::copy(a[0], a[1], a[2], a[3], row);
  __syncwarp();
  cute::SM75_U32x4_LDSM_N::copy(row, b[0], b[1], b[2], b[3]);
  __syncwarp();
  cute::SM90_U16x8_STSM_T::copy(a[0], a[1], a[2], a[3], row);
  __syncwarp();
  b += 128;
  cute::SM75_U16x8_LDSM_T::copy(row, b[0], b[1], b[2], b[3]);
}

// in [32, 2]: matrix elements of each lane; out [2, 128]: the two 8 x 8 matrices as they lie in memory, straight, then
// transposed.
__global__ void store_matrices_kernel(const uint32_t* in, uint16_t* out) {
  TOKCORE_SHARED_MEMORY(shared);
  const int lane = static_cast<int>(threadIdx.x);
  auto& row = *reinterpret_cast<cute::uint128_t*>(shared + lane % 16 * 16);
  const auto* elements = reinterpret_cast<const uint16_t*>(shared);
  cute::SM90_U32x2_STSM_N::copy(in[2 * lane], in[2 * lane + 1], row);
  __syncwarp();
  for (int i = lane; i < 128; i += 32) out[i] = elements[i];
  __syncwarp();
  cute::SM90_U16x4_STSM_T::copy(in[2 * lane], in[2 * lane + 1], row);
  __syncwarp();
  for (int i = lane; i < 128; i += 32) out[128 + i] = elements[i];
}

// Of each block, out [blocks, 6]: rank, its place and the extent along x of the cluster, the cluster's and the number
// of clusters along x, and the sum of the ranks that arrived at its mbarrier, each as many times as its rank + 1.
__global__ void cluster_kernel(int* out) {
  using cutlass::arch::ClusterBarrier;
  TOKCORE_SHARED_MEMORY(shared);
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  const auto rank = cute::block_rank_in_cluster();
  const auto size = cute::cluster_shape().x;
  if (threadIdx.x == 0) ClusterBarrier::init(barrier, size * (size + 1) / 2);
  cute::cluster_arrive();
  cute::cluster_wait();
  if (threadIdx.x < size) {
    for (uint32_t i = 0; i <= rank; ++i) ClusterBarrier::arrive(barrier, threadIdx.x, 1);
  }
  ClusterBarrier::wait(barrier, 0);
  if (threadIdx.x == 0) {
    int* mine = out + 6 * blockIdx.x;
    mine[0] = static_cast<int>(rank);
    mine[1] = static_cast<int>(cute::block_id_in_cluster().x);
    mine[2] = static_cast<int>(size);
    mine[3] = static_cast<int>(cute::cluster_id_in_grid().x);
    mine[4] = static_cast<int>(cute::cluster_grid_dims().x);
    mine[5] = ClusterBarrier::test_wait(barrier, 1, 1) ? 1 : 0;
  }
  cute::cluster_sync();
}

const Bindings bindings([](pybind11::module_& module) {
  module.def("hopper_indices", [](uintptr_t out, unsigned threads) {
    cuda::launch<&indices_kernel>(LaunchConfig{.grid = {1}, .threads = threads, .name = "indices"}, pointer<int>(out));
  });
  module.def("hand_over", [](uintptr_t out, int rounds) {
    cuda::launch<&hand_over_kernel>(LaunchConfig{.grid = {1}, .threads = 96, .shared_bytes = 128, .name = "hand_over"},
                                    pointer<int>(out), rounds);
  });
  module.def("move_matrices", [](uintptr_t in, uintptr_t out) {
    cuda::launch<&matrices_kernel>(LaunchConfig{.grid = {1}, .threads = 32, .shared_bytes = 512, .name = "matrices"},
                                   pointer<const uint32_t>(in), pointer<uint32_t>(out));
  });
  module.def("store_matrices", [](uintptr_t in, uintptr_t out) {
    cuda::launch<&store_matrices_kernel>(
        LaunchConfig{.grid = {1}, .threads = 32, .shared_bytes = 256, .name = "store_matrices"},
        pointer<const uint32_t>(in), pointer<uint16_t>(out));
  });
  module.def("cluster_places", [](uintptr_t out, unsigned blocks, unsigned cluster) {
    cuda::launch<&cluster_kernel>(
        LaunchConfig{.grid = {blocks}, .threads = 64, .shared_bytes = 8, .cluster = cluster, .name = "cluster_places"},
        pointer<int>(out));
  });
});

}  // namespace
}  // namespace tokcore::simt
