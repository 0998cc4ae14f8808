// Test kernel: a persistent GEMM of the Hopper kind. A producer warp copies by TMA into a ring of stages, two consumer
// warpgroups multiply by wgmma, the result leaves through shared memory and a TMA store. In a cluster of two blocks the
// blocks share the tile of b: each loads half of it for both.
//
// c [M, N] = a b^T;  a is [M, K] or, MN-major, [K, M];  b is [N, K] or [K, N];  c is fp32, or s32 for s8
#pragma once

#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"
#include "tokcore/cuda/tensor_map.h"

namespace tokcore::simt::hopper_gemm {

// The bugs that mutations/hopper_gemm.cc plants.
enum class Mutation {
  kNone,
  // barriers of the ring
  kWrongByteCount,
  kByteCountOfOneOperand,
  kMissingFullWait,
  kMissingEmptyWait,
  kWrongFullPhase,
  kWrongEmptyPhase,
  kMissingEmptyArrive,
  kDoubleEmptyArrive,
  kEarlyEmptyArrive,
  kEmptyArriveOfStageInUse,
  kMissingInit,
  kMissingInitFence,
  kUnelectedLoad,
  // wgmma
  kMissingWgmmaFence,
  kMissingWgmmaCommit,
  kMissingWgmmaWait,
  kWgmmaWaitForOneTooFew,
  kUnswizzledDescriptor,
  kWrongDescriptorStride,
  kWgmmaOfThreeWarps,
  // operand a in registers
  kUnswizzledRead,
  kEarlyFragmentReload,
  // epilogue
  kMissingProxyFence,
  kMissingStoreWait,
  kMissingStoreCommit,
  kMissingBarrierBeforeStore,
  kNamedBarrierCountTooSmall,
  kNamedBarrierCountTooLarge,
  // block and cluster
  kRegisterOverdraw,
  kMissingClusterSync,
  kMissingRemoteArrive,
};

struct Params {
  CUtensorMap a, b, c;
  int num_tiles_m, num_tiles_n, num_k_blocks;
};

constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kTileM = 64;  // of a warpgroup
constexpr int kBlockM = kTileM * kConsumers;
constexpr int kBlockN = 64;
constexpr int kRowBytes = 128;  // of a stage: the span of the swizzle
constexpr int kStages = 3;
constexpr int kBytesOfA = kBlockM * kRowBytes;
constexpr int kBytesOfB = kBlockN * kRowBytes;
constexpr int kStageBytes = kBytesOfA + kBytesOfB;
constexpr int kStagingBytes = kTileM * kBlockN * 4;  // of a warpgroup
constexpr int kBarrierOffset = kStages * kStageBytes + kConsumers * kStagingBytes;
constexpr int kSharedBytes = kBarrierOffset + 2 * kStages * 8;
constexpr int kStagingBarrier = 1;  // named barrier of the first consumer

using cute::SM90::GMMA::Major;
using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
using EmptyBarrier = cutlass::arch::ClusterBarrier;

struct BFloat16Kind {
  static constexpr int kElementBytes = 2;
  using Accumulator = float;
  template <Major kA, Major kB>
  using Shared = cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_SS<kA, kB>;
  template <Major kA, Major kB>
  using Registers = cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_RS<kA, kB>;
};
struct Int8Kind {
  static constexpr int kElementBytes = 1;
  using Accumulator = uint32_t;
  template <Major, Major>
  using Shared = cute::SM90::GMMA::MMA_64x64x32_S32S8S8_SS_TN;
};
struct E4M3Kind {
  static constexpr int kElementBytes = 1;
  using Accumulator = float;
  template <Major, Major>
  using Shared = cute::SM90::GMMA::MMA_64x64x32_F32E4M3E4M3_SS_TN<>;
};

template <class Kind_, Major kMajorA_ = Major::K, Major kMajorB_ = Major::K, bool kAFromRegisters_ = false,
          int kCluster_ = 1, Mutation kMutation_ = Mutation::kNone>
struct Config {
  using Kind = Kind_;
  static constexpr Major kMajorA = kMajorA_;
  static constexpr Major kMajorB = kMajorB_;
  static constexpr bool kAFromRegisters = kAFromRegisters_;
  static constexpr int kCluster = kCluster_;
  static constexpr Mutation kMutation = kMutation_;
  static constexpr int kBlockK = kRowBytes / Kind::kElementBytes;
  static_assert(kMajorB == Major::K || kCluster == 1, "half a tile of b is a number of its rows");
};

// Where 64 rows of an operand lie: 128-byte rows of memory in groups of eight.
template <Mutation kMutation>
TOKCORE_DEVICE uint64_t matrix_descriptor(const unsigned char* shared) {
  cute::GmmaDescriptor descriptor;
  descriptor.bitfield.start_address_ = static_cast<uint16_t>(cute::cast_smem_ptr_to_uint(shared) >> 4);
  descriptor.bitfield.leading_byte_offset_ = 0;
  descriptor.bitfield.stride_byte_offset_ =
      (8 * kRowBytes * (kMutation == Mutation::kWrongDescriptorStride ? 2 : 1)) >> 4;
  descriptor.bitfield.layout_type_ = kMutation == Mutation::kUnswizzledDescriptor ? 0 : 1;
  return descriptor;
}

template <class C>
class Ring {
 public:
  static constexpr Mutation kMutation = C::kMutation;

  TOKCORE_DEVICE explicit Ring(unsigned char* shared) : shared_(shared) {}

  TOKCORE_DEVICE void init() {
    for (int stage = 0; stage < kStages; ++stage) {
      FullBarrier::init(full(stage), 1);
      if (kMutation != Mutation::kMissingInit) EmptyBarrier::init(empty(stage), kConsumers * 4 * C::kCluster);
    }
    if (kMutation != Mutation::kMissingInitFence) cutlass::arch::fence_barrier_init();
  }

  TOKCORE_DEVICE int stage() const { return stage_; }
  TOKCORE_DEVICE unsigned char* a() const { return shared_ + stage_ * kStageBytes; }
  TOKCORE_DEVICE unsigned char* b() const { return a() + kBytesOfA; }
  TOKCORE_DEVICE uint64_t* full() const { return full(stage_); }

  TOKCORE_DEVICE void wait_full() const {
    if (kMutation == Mutation::kMissingFullWait) return;
    FullBarrier::wait(full(stage_), kMutation == Mutation::kWrongFullPhase ? phase_ ^ 1 : phase_);
  }
  TOKCORE_DEVICE void wait_empty() const {
    if (kMutation == Mutation::kMissingEmptyWait) return;
    EmptyBarrier::wait(empty(stage_), kMutation == Mutation::kWrongEmptyPhase ? phase_ : phase_ ^ 1);
  }
  // By every warp of the consumers, for every block that may refill the stage.
  TOKCORE_DEVICE void arrive_empty(int stage) const {
    if (threadIdx.x % 32 != 0 || kMutation == Mutation::kMissingEmptyArrive) return;
    if constexpr (C::kCluster == 1) {
      EmptyBarrier::arrive(empty(stage));
      if (kMutation == Mutation::kDoubleEmptyArrive) EmptyBarrier::arrive(empty(stage));
    } else {
      const uint32_t own = cute::block_rank_in_cluster();
      for (uint32_t rank = 0; rank < C::kCluster; ++rank) {
        EmptyBarrier::arrive(empty(stage), rank, kMutation != Mutation::kMissingRemoteArrive || rank == own);
      }
    }
  }
  TOKCORE_DEVICE void next() {
    if (++stage_ == kStages) {
      stage_ = 0;
      phase_ ^= 1;
    }
  }

 private:
  TOKCORE_DEVICE uint64_t* full(int stage) const {
    return reinterpret_cast<uint64_t*>(shared_ + kBarrierOffset) + stage;
  }
  TOKCORE_DEVICE uint64_t* empty(int stage) const { return full(kStages + stage); }

  unsigned char* shared_;
  int stage_ = 0;
  uint32_t phase_ = 0;
};

// The tiles of a block: those of its cluster, one below the other for the blocks of a cluster.
struct Tile {
  int m, n;  // first row and column
};
template <class C, class Visit>
TOKCORE_DEVICE void for_each_tile(const Params& params, Visit&& visit) {
  const int rank = static_cast<int>(cute::block_rank_in_cluster());
  const int cluster = static_cast<int>(blockIdx.x) / C::kCluster;
  const int num_clusters = static_cast<int>(gridDim.x) / C::kCluster;
  const int rows = (params.num_tiles_m + C::kCluster - 1) / C::kCluster;
  for (int i = cluster; i < rows * params.num_tiles_n; i += num_clusters) {
    visit(Tile{(i % rows * C::kCluster + rank) * kBlockM, i / rows * kBlockN});
  }
}

template <class C>
TOKCORE_DEVICE void load_stage(const Params& params, const Ring<C>& ring, const Tile& tile, int k) {
  constexpr uint64_t kHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  using Load = cute::SM90_TMA_LOAD_2D;
  if constexpr (C::kMajorA == Major::K) {
    Load::copy(&params.a, ring.full(), kHint, ring.a(), k, tile.m);
  } else {
    for (int i = 0; i < kConsumers; ++i) {
      Load::copy(&params.a, ring.full(), kHint, ring.a() + i * kTileM * kRowBytes, tile.m + i * kTileM, k);
    }
  }
  if constexpr (C::kMajorB == Major::MN) {
    Load::copy(&params.b, ring.full(), kHint, ring.b(), tile.n, k);
  } else if constexpr (C::kCluster == 1) {
    Load::copy(&params.b, ring.full(), kHint, ring.b(), k, tile.n);
  } else {
    constexpr int kRows = kBlockN / C::kCluster;
    const int rank = static_cast<int>(cute::block_rank_in_cluster());
    cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&params.b, ring.full(), (1 << C::kCluster) - 1, kHint,
                                           ring.b() + rank * kRows * kRowBytes, k, tile.n + rank * kRows);
  }
}

template <class C>
TOKCORE_DEVICE void produce(const Params& params, Ring<C>& ring) {
  constexpr int kBytes = C::kMutation == Mutation::kWrongByteCount          ? kStageBytes + 16
                         : C::kMutation == Mutation::kByteCountOfOneOperand ? kBytesOfA
                                                                            : kStageBytes;
  for_each_tile<C>(params, [&](const Tile& tile) {
    for (int block = 0; block < params.num_k_blocks; ++block) {
      ring.wait_empty();
      FullBarrier::arrive_and_expect_tx(ring.full(), kBytes);
      load_stage<C>(params, ring, tile, block * C::kBlockK);
      ring.next();
    }
  });
}

template <class Instruction, class Accumulator, class A, size_t... kIndex>
TOKCORE_DEVICE void multiply(const A& a, uint64_t b, Accumulator* sum, std::index_sequence<kIndex...>) {
  if constexpr (std::is_same_v<A, uint64_t>) {
    Instruction::fma(a, b, sum[kIndex]..., cute::SM90::GMMA::ScaleOut::One);
  } else {
    Instruction::fma(a[0], a[1], a[2], a[3], b, sum[kIndex]..., cute::SM90::GMMA::ScaleOut::One);
  }
}

// The warp's 16 rows of 32 bytes from `step` on, by ldmatrix.
template <Mutation kMutation>
TOKCORE_DEVICE void load_fragment(const unsigned char* tile, int step, uint32_t (&fragment)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane % 16;
  const int chunk = 2 * step + lane / 16;
  const int place = kMutation == Mutation::kUnswizzledRead ? chunk : chunk ^ row % 8;
  cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const cute::uint128_t*>(tile + row * kRowBytes + place * 16),
                                fragment[0], fragment[1], fragment[2], fragment[3]);
}

template <class C, class Accumulator>
TOKCORE_DEVICE void multiply_stage(const Ring<C>& ring, int consumer, Accumulator (&sum)[kBlockN / 2]) {
  constexpr int kSteps = 4;  // of 32 bytes of k, along a row of memory or down 16 rows
  constexpr int kStepA = C::kMajorA == Major::K ? 32 : 16 * kRowBytes;
  constexpr int kStepB = C::kMajorB == Major::K ? 32 : 16 * kRowBytes;
  constexpr auto kIndices = std::make_index_sequence<kBlockN / 2>();
  constexpr Mutation kMutation = C::kMutation;
  const unsigned char* a = ring.a() + consumer * kTileM * kRowBytes;
  uint32_t fragments[kSteps][4];
  if constexpr (C::kAFromRegisters) {
    for (int step = 0; step < kSteps; ++step) load_fragment<kMutation>(a, step, fragments[step]);
  }
  if (kMutation != Mutation::kMissingWgmmaFence) cute::warpgroup_arrive();
  if (kMutation == Mutation::kWgmmaOfThreeWarps && threadIdx.x / 32 % 4 == 3) return;
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t b = matrix_descriptor<kMutation>(ring.b() + step * kStepB);
    if constexpr (C::kAFromRegisters) {
      multiply<typename C::Kind::template Registers<C::kMajorA, C::kMajorB>>(fragments[step], b, sum, kIndices);
      if (kMutation == Mutation::kEarlyFragmentReload) load_fragment<kMutation>(a, step, fragments[0]);
    } else {
      const uint64_t descriptor = matrix_descriptor<kMutation>(a + step * kStepA);
      multiply<typename C::Kind::template Shared<C::kMajorA, C::kMajorB>>(descriptor, b, sum, kIndices);
    }
  }
  if (kMutation != Mutation::kMissingWgmmaCommit) cute::warpgroup_commit_batch();
}

template <int kAllowed, Mutation kMutation>
TOKCORE_DEVICE void wait_for_products() {
  if (kMutation == Mutation::kMissingWgmmaWait) return;
  cute::warpgroup_wait<kMutation == Mutation::kWgmmaWaitForOneTooFew ? kAllowed + 1 : kAllowed>();
}

// The warpgroup's 64 x 64 through its staging. Bulk groups belong to a thread: the same one stores every tile.
template <class C, class Accumulator>
TOKCORE_DEVICE void store_tile(const Params& params, unsigned char* staging, int consumer, const Tile& tile,
                               const Accumulator (&sum)[kBlockN / 2]) {
  constexpr Mutation kMutation = C::kMutation;
  constexpr uint32_t kCount = kMutation == Mutation::kNamedBarrierCountTooSmall   ? 64
                              : kMutation == Mutation::kNamedBarrierCountTooLarge ? 160
                                                                                  : 128;
  const auto id = static_cast<cutlass::arch::ReservedNamedBarriers>(kStagingBarrier + consumer);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32;
  if (thread == 0 && kMutation != Mutation::kMissingStoreWait) cute::tma_store_wait<0>();  // the tile before was read
  cutlass::arch::NamedBarrier::sync(kCount, id);
  for (int i = 0; i < kBlockN / 2; ++i) {
    const int row = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    reinterpret_cast<Accumulator*>(staging)[row * kBlockN + column] = sum[i];
  }
  if (kMutation != Mutation::kMissingProxyFence) cute::tma_store_fence();
  if (kMutation != Mutation::kMissingBarrierBeforeStore) cutlass::arch::NamedBarrier::sync(kCount, id);
  if (thread == 0) {
    cute::SM90_TMA_STORE_2D::copy(&params.c, staging, tile.n, tile.m + consumer * kTileM);
    if (kMutation != Mutation::kMissingStoreCommit) cute::tma_store_arrive();
  }
}

template <class C>
TOKCORE_DEVICE void consume(const Params& params, Ring<C>& ring, unsigned char* staging, int consumer) {
  constexpr Mutation kMutation = C::kMutation;
  // Products of one stage may be under way while those of the next are issued; fragments are not kept that long.
  constexpr int kInFlight = C::kAFromRegisters ? 0 : 1;
  for_each_tile<C>(params, [&](const Tile& tile) {
    typename C::Kind::Accumulator sum[kBlockN / 2] = {};
    int in_use = -1;
    for (int block = 0; block < params.num_k_blocks; ++block) {
      ring.wait_full();
      if (kMutation == Mutation::kEarlyEmptyArrive) ring.arrive_empty(ring.stage());
      multiply_stage<C>(ring, consumer, sum);
      wait_for_products<kInFlight, kMutation>();
      const int done = kInFlight == 0 || kMutation == Mutation::kEmptyArriveOfStageInUse ? ring.stage() : in_use;
      if (done >= 0 && kMutation != Mutation::kEarlyEmptyArrive) ring.arrive_empty(done);
      in_use = ring.stage();
      ring.next();
    }
    wait_for_products<0, kMutation>();
    if (kInFlight > 0 && kMutation != Mutation::kEarlyEmptyArrive && kMutation != Mutation::kEmptyArriveOfStageInUse) {
      ring.arrive_empty(in_use);
    }
    store_tile<C>(params, staging, consumer, tile, sum);
  });
  if (threadIdx.x % 128 == 0) cute::tma_store_wait<0>();
}

template <class C>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ Params params) {
  TOKCORE_SHARED_MEMORY(shared);
  Ring<C> ring(shared);
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&params.a);
    cute::prefetch_tma_descriptor(&params.b);
    cute::prefetch_tma_descriptor(&params.c);
    ring.init();
  }
  if constexpr (C::kCluster == 1) {
    __syncthreads();
  } else {
    cute::cluster_sync();
  }
  if (warpgroup == 0) {
    if (C::kMutation != Mutation::kRegisterOverdraw) cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x < 32) {
      if (C::kMutation == Mutation::kUnelectedLoad ? threadIdx.x < 2 : cute::elect_one_sync() != 0)
        produce(params, ring);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    const int consumer = warpgroup - 1;
    consume(params, ring, shared + kStages * kStageBytes + consumer * kStagingBytes, consumer);
  }
  if constexpr (C::kCluster > 1 && C::kMutation != Mutation::kMissingClusterSync) {
    __syncwarp();          // the producer's lanes come back together
    cute::cluster_sync();  // no block may go while another one's arrivals are under way to it
  }
}

struct Problem {
  const void* a;
  const void* b;
  void* c;
  int m, n, k;
  unsigned blocks;
};

template <class C>
void run(const Problem& problem, const char* name) {
  using cuda::TensorMapElement;
  using cuda::TensorMapSwizzle;
  constexpr auto kElement = C::Kind::kElementBytes == 1 ? TensorMapElement::kByte : TensorMapElement::kBFloat16;
  const auto m = static_cast<uint64_t>(problem.m), n = static_cast<uint64_t>(problem.n),
             k = static_cast<uint64_t>(problem.k);
  const auto operand = [&](const void* base, Major major, uint64_t mn, uint32_t box_mn) {
    const bool k_major = major == Major::K;
    return cuda::make_matrix_map(kElement, base, k_major ? mn : k, k_major ? k : mn,
                                 (k_major ? k : mn) * C::Kind::kElementBytes, k_major ? box_mn : C::kBlockK, C::kBlockK,
                                 TensorMapSwizzle::k128);
  };
  Params params;
  params.a = operand(problem.a, C::kMajorA, m, kBlockM);
  params.b = operand(problem.b, C::kMajorB, n, kBlockN / C::kCluster);
  params.c = cuda::make_matrix_map(
      std::is_same_v<typename C::Kind::Accumulator, float> ? TensorMapElement::kFloat32 : TensorMapElement::kInt32,
      problem.c, m, n, n * 4, kTileM, kBlockN, TensorMapSwizzle::kNone);
  params.num_tiles_m = (problem.m + kBlockM - 1) / kBlockM;
  params.num_tiles_n = (problem.n + kBlockN - 1) / kBlockN;
  params.num_k_blocks = (problem.k + C::kBlockK - 1) / C::kBlockK;
  cuda::launch<&kernel<C>>(cuda::LaunchConfig{.grid = {problem.blocks},
                                              .threads = kThreads,
                                              .shared_bytes = kSharedBytes,
                                              .cluster = C::kCluster,
                                              .name = name},
                           params);
}

}  // namespace tokcore::simt::hopper_gemm
