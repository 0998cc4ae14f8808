// One small kernel per misuse of a primitive of sm_90. Each must fail with a message that names it.
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <pybind11/stl.h>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>

#include <cstring>
#include <string>
#include <utility>

#include "bindings.h"
#include "mutations/mutations.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"
#include "tokcore/cuda/tensor_map.h"

namespace tokcore::simt {
namespace {

using cute::SM90::GMMA::Major;
using cutlass::arch::ClusterTransactionBarrier;
using cutlass::arch::NamedBarrier;
using cutlass::arch::ReservedNamedBarriers;

enum class Fault {
  kNone,
  // mbarrier
  kArriveWithoutInit,
  kInitTwice,
  kUseAfterInval,
  kCountOfZero,
  kMisalignedBarrier,
  kBarrierPastEnd,
  kOverwrittenBarrier,
  kArriveTooOften,
  kTooManyBytes,
  kParityOfTwo,
  kEndlessTryWait,
  // TMA
  kMapOfGarbage,
  kMisalignedMap,
  kWrongRank,
  kMisalignedTile,
  kTilePastEnd,
  kLoadOverUnfencedStores,
  kLoadNobodyWaitsFor,
  kUnpublishedBarrier,
  kMulticastBeyondCluster,
  kNarrowBoxUnderSwizzle,
  kBulkStoreNobodyWaitsFor,
  // named barriers
  kBarrierNumber16,
  kBarrierNumber0,
  kCountOf48,
  kCountsThatDiffer,
  kBarriersThatDiffer,
  kWarpArrivesTwice,
  kHalfAWarpArrives,
  // warps and clusters
  kElectionOfHalfAWarp,
  kRegistersNotOfEight,
  kRegistersOfOneWarp,
  kIncreaseToLess,
  kClusterWaitAlone,
  kClusterArriveTwice,
  kExitBeforeClusterWait,
  kBarrierOfNobody,
  // wgmma
  kWgmmaOfUnfencedStores,
  kWgmmaPastEnd,
  kWgmmaOfTwoWarps,
  kWgmmaDescriptorsThatDiffer,
  kWgmmaWriteBeforeWait,
  // without emulation
  kStoreShared,
  kIm2col,
  kUnalignedBarrier,
  kCpAsyncArrive,
  kTensorMemory,
};

constexpr const char* kNames[] = {
    "arrive_without_init",
    "init_twice",
    "use_after_inval",
    "count_of_zero",
    "misaligned_barrier",
    "barrier_past_end",
    "overwritten_barrier",
    "arrive_too_often",
    "too_many_bytes",
    "parity_of_two",
    "endless_try_wait",
    "map_of_garbage",
    "misaligned_map",
    "wrong_rank",
    "misaligned_tile",
    "tile_past_end",
    "load_over_unfenced_stores",
    "load_nobody_waits_for",
    "unpublished_barrier",
    "multicast_beyond_cluster",
    "narrow_box_under_swizzle",
    "bulk_store_nobody_waits_for",
    "barrier_number_16",
    "barrier_number_0",
    "count_of_48",
    "counts_that_differ",
    "barriers_that_differ",
    "warp_arrives_twice",
    "half_a_warp_arrives",
    "election_of_half_a_warp",
    "registers_not_of_eight",
    "registers_of_one_warp",
    "increase_to_less",
    "cluster_wait_alone",
    "cluster_arrive_twice",
    "exit_before_cluster_wait",
    "barrier_of_nobody",
    "wgmma_of_unfenced_stores",
    "wgmma_past_end",
    "wgmma_of_two_warps",
    "wgmma_descriptors_that_differ",
    "wgmma_write_before_wait",
    "store_shared",
    "im2col",
    "unaligned_barrier",
    "cp_async_arrive",
    "tensor_memory",
};

constexpr int kSharedBytes = 8192;
constexpr int kTileRows = 16;  // of 128 bytes
constexpr int kTileBytes = kTileRows * 128;

struct Params {
  CUtensorMap map, narrow_map;
  float* out;  // [threads]
};

TOKCORE_DEVICE void init(uint64_t* barrier, uint32_t count) {
  if (threadIdx.x == 0) {
    ClusterTransactionBarrier::init(barrier, count);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
}

template <Fault kFault>
TOKCORE_DEVICE void misuse_mbarrier(unsigned char* shared) {
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  const bool first = threadIdx.x == 0;
  if (kFault == Fault::kArriveWithoutInit && first) ClusterTransactionBarrier::arrive(barrier);
  if (kFault == Fault::kCountOfZero && first) ClusterTransactionBarrier::init(barrier, 0);
  if (kFault == Fault::kMisalignedBarrier && first) {
    ClusterTransactionBarrier::init(reinterpret_cast<uint64_t*>(shared + 4), 1);
  }
  if (kFault == Fault::kBarrierPastEnd && first) {
    ClusterTransactionBarrier::init(reinterpret_cast<uint64_t*>(shared + kSharedBytes), 1);
  }
  init(barrier, 1);
  if (kFault == Fault::kInitTwice && first) ClusterTransactionBarrier::init(barrier, 1);
  if (kFault == Fault::kUseAfterInval && first) {
    ClusterTransactionBarrier::invalidate(barrier);
    ClusterTransactionBarrier::arrive(barrier);
  }
  if (kFault == Fault::kOverwrittenBarrier && first) {
    shared[3] ^= 1;
    ClusterTransactionBarrier::arrive(barrier);
  }
  if (kFault == Fault::kArriveTooOften && first) {
    ClusterTransactionBarrier::arrive_and_expect_tx(barrier, 16);
    ClusterTransactionBarrier::arrive(barrier);
  }
  if (kFault == Fault::kTooManyBytes && first) ClusterTransactionBarrier::expect_transaction(barrier, 1 << 20);
  if (kFault == Fault::kParityOfTwo) ClusterTransactionBarrier::wait(barrier, 2);
  if (kFault == Fault::kEndlessTryWait) {
    while (!ClusterTransactionBarrier::try_wait(barrier, 0)) continue;
  }
}

template <Fault kFault>
TOKCORE_DEVICE void misuse_tma(const Params& params, unsigned char* shared) {
  auto* barrier = reinterpret_cast<uint64_t*>(shared + kTileBytes);
  if (kFault == Fault::kUnpublishedBarrier) {
    if (threadIdx.x == 0) ClusterTransactionBarrier::init(barrier, 1);
    __syncthreads();
  } else {
    init(barrier, 1);
  }
  if (kFault == Fault::kLoadOverUnfencedStores) reinterpret_cast<float*>(shared)[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x != 0) return;
  const CUtensorMap* map = kFault == Fault::kNarrowBoxUnderSwizzle ? &params.narrow_map : &params.map;
  unsigned char* tile = shared + (kFault == Fault::kMisalignedTile ? 64
                                  : kFault == Fault::kTilePastEnd  ? kSharedBytes - 1024
                                                                   : 0);
  alignas(128) CUtensorMap copy[2];
  if (kFault == Fault::kMapOfGarbage) {
    std::memset(copy, 0, sizeof(copy));
    map = copy;
  }
  if (kFault == Fault::kMisalignedMap) {
    map = reinterpret_cast<const CUtensorMap*>(reinterpret_cast<unsigned char*>(copy) + 32);
  }
  ClusterTransactionBarrier::arrive_and_expect_tx(barrier, kTileBytes);
  if (kFault == Fault::kWrongRank) {
    cute::SM90_TMA_LOAD_3D::copy(map, barrier, 0, tile, 0, 0, 0);
  } else if (kFault == Fault::kMulticastBeyondCluster) {
    cute::SM90_TMA_LOAD_MULTICAST_2D::copy(map, barrier, 3, 0, tile, 0, 0);
  } else if (kFault == Fault::kBulkStoreNobodyWaitsFor) {
    cutlass::arch::fence_view_async_shared();
    cute::SM90_BULK_COPY_S2G::copy(shared, params.out, 64);
    cute::tma_store_arrive();
  } else {
    cute::SM90_TMA_LOAD_2D::copy(map, barrier, 0, tile, 0, 0);
    if (kFault != Fault::kLoadNobodyWaitsFor) ClusterTransactionBarrier::wait(barrier, 0);
  }
}

template <Fault kFault>
TOKCORE_DEVICE void misuse_named_barrier() {
  const auto id = [](int number) { return static_cast<ReservedNamedBarriers>(number); };
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  if (kFault == Fault::kBarrierNumber16) NamedBarrier::sync(128, id(16));
  if (kFault == Fault::kBarrierNumber0) NamedBarrier::sync(128, id(0));
  if (kFault == Fault::kCountOf48) NamedBarrier::sync(48, id(1));
  if (kFault == Fault::kCountsThatDiffer) NamedBarrier::sync(warp == 0 ? 96 : 128, id(1));
  if (kFault == Fault::kBarriersThatDiffer) NamedBarrier::sync(128, id(lane == 5 ? 2 : 1));
  if (kFault == Fault::kWarpArrivesTwice && warp == 0) {
    NamedBarrier::arrive(128, id(1));
    NamedBarrier::arrive(128, id(1));
  }
  if (kFault == Fault::kHalfAWarpArrives && lane < 16) NamedBarrier::sync(128, id(1));
}

template <Fault kFault>
TOKCORE_DEVICE void misuse_warps() {
  const uint32_t warp = threadIdx.x / 32;
  if (kFault == Fault::kElectionOfHalfAWarp && threadIdx.x % 32 < 16) cute::elect_one_sync();
  if (kFault == Fault::kRegistersNotOfEight) cutlass::arch::warpgroup_reg_dealloc<100>();
  if (kFault == Fault::kRegistersOfOneWarp && warp == 1) cutlass::arch::warpgroup_reg_dealloc<40>();
  if (kFault == Fault::kIncreaseToLess) cutlass::arch::warpgroup_reg_alloc<64>();
  if (kFault == Fault::kClusterWaitAlone) cute::cluster_wait();
  if (kFault == Fault::kClusterArriveTwice) {
    cute::cluster_arrive();
    cute::cluster_arrive();
  }
  if (kFault == Fault::kExitBeforeClusterWait) cute::cluster_arrive();
}

template <Fault kFault>
TOKCORE_DEVICE void misuse_wgmma(const Params& params, unsigned char* shared) {
  using Instruction = cute::SM90::GMMA::MMA_64x8x16_F32BF16BF16_SS<Major::K, Major::K>;
  if (kFault == Fault::kWgmmaOfUnfencedStores) {
    reinterpret_cast<float*>(shared)[threadIdx.x] = 1.0f;
  }
  __syncthreads();
  cute::GmmaDescriptor descriptor;
  descriptor.bitfield.start_address_ = static_cast<uint16_t>(cute::cast_smem_ptr_to_uint(shared) >> 4);
  if (kFault == Fault::kWgmmaDescriptorsThatDiffer && threadIdx.x % 32 == 9) descriptor.bitfield.start_address_ += 1;
  // 64 rows at 1024 bytes for 8 of them are the whole of shared memory.
  descriptor.bitfield.stride_byte_offset_ = (kFault == Fault::kWgmmaPastEnd ? 2048 : 1024) >> 4;
  descriptor.bitfield.layout_type_ = 1;
  float d[4] = {};
  cute::warpgroup_arrive();
  if (kFault == Fault::kWgmmaOfTwoWarps && threadIdx.x >= 64) return;
  Instruction::fma(descriptor, descriptor, d[0], d[1], d[2], d[3], cute::SM90::GMMA::ScaleOut::Zero);
  cute::warpgroup_commit_batch();
  if (kFault == Fault::kWgmmaWriteBeforeWait) d[0] = 1.0f;
  cute::warpgroup_wait<0>();
  params.out[threadIdx.x] = d[0];
}

template <Fault kFault>
TOKCORE_DEVICE void use_what_is_not_emulated(const Params& params, unsigned char* shared) {
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  const uint32_t address = cute::cast_smem_ptr_to_uint(shared);
  if (kFault == Fault::kStoreShared) cute::store_shared_remote(1, address, address, 0);
  if (kFault == Fault::kIm2col) cute::SM90_TMA_LOAD_IM2COL_3D::copy(&params.map, barrier, shared, 0, 0, 0, 0);
  if (kFault == Fault::kUnalignedBarrier) {
    NamedBarrier(128, static_cast<ReservedNamedBarriers>(1)).arrive_and_wait_unaligned();
  }
  if (kFault == Fault::kCpAsyncArrive) cutlass::arch::cpasync_barrier_arrive(barrier);
  if (kFault == Fault::kTensorMemory) cutlass::arch::umma_arrive(barrier);
}

template <Fault kFault>
__global__ void faulty_kernel(const __grid_constant__ Params params) {
  TOKCORE_SHARED_MEMORY(shared);
  if constexpr (kFault > Fault::kNone && kFault <= Fault::kEndlessTryWait) misuse_mbarrier<kFault>(shared);
  if constexpr (kFault >= Fault::kMapOfGarbage && kFault <= Fault::kBulkStoreNobodyWaitsFor)
    misuse_tma<kFault>(params, shared);
  if constexpr (kFault >= Fault::kBarrierNumber16 && kFault <= Fault::kHalfAWarpArrives) misuse_named_barrier<kFault>();
  if constexpr (kFault >= Fault::kElectionOfHalfAWarp && kFault <= Fault::kExitBeforeClusterWait)
    misuse_warps<kFault>();
  if constexpr (kFault == Fault::kBarrierOfNobody) {
    ClusterTransactionBarrier::arrive(reinterpret_cast<uint64_t*>(shared), 1, 1);  // no block 1 in this cluster
  }
  if constexpr (kFault >= Fault::kWgmmaOfUnfencedStores && kFault <= Fault::kWgmmaWriteBeforeWait) {
    misuse_wgmma<kFault>(params, shared);
  }
  if constexpr (kFault >= Fault::kStoreShared) use_what_is_not_emulated<kFault>(params, shared);
}

struct Launch {
  template <Fault kFault>
  static void run(float* data) {
    using namespace cuda;
    const Params params{
        make_matrix_map(TensorMapElement::kFloat32, data, kTileRows, 32, 128, kTileRows, 32, TensorMapSwizzle::k128),
        make_matrix_map(TensorMapElement::kFloat32, data, kTileRows, 32, 128, kTileRows, 16, TensorMapSwizzle::k128),
        data};
    launch<&faulty_kernel<kFault>>(
        LaunchConfig{.grid = {1}, .threads = 128, .shared_bytes = kSharedBytes, .name = "hopper_fault"}, params);
  }
};

constexpr MutationTable<Fault, std::size(kNames), Launch> kTable{kNames};

const Bindings bindings([](pybind11::module_& module) {
  module.def("hopper_faults", [] { return kTable.list(); });
  module.def("run_hopper_fault",
             [](const std::string& name, uintptr_t data) { kTable.run(name, pointer<float>(data)); });
});

}  // namespace
}  // namespace tokcore::simt
