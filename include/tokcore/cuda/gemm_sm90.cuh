// The mainloop of products of tiles on Hopper: one warpgroup copies by TMA into a ring of stages, two multiply by
// wgmma.
//
// Reading operands from L2 is what bounds tiles of this size. So a tile is 256 x 128 (or 128 x 256), a block has a
// multiprocessor to itself, and the two blocks of a cluster work side by side on tiles that share the larger operand:
// each copies half of it to both, 32 KB from L2 for 4.2 MFLOP where a block alone would read 48. The ring runs on from
// tile to tile: while a finished tile is worked on, the next one's operands arrive.
#pragma once

#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "tokcore/common/math.h"
#include "tokcore/cuda/launch.h"
#include "tokcore/cuda/strip_fragment.cuh"
#include "tokcore/cuda/tensor_map.h"
#include "tokcore/cuda/wgmma.cuh"

namespace tokcore::cuda {

// kMn rows or columns of a product by 64 k, 128-byte swizzled. With k contiguous in memory a row of 128 bytes is a row
// of the operand; otherwise it is 64 of its rows at one k, and stretches of 64 lie one after the other.
template <class T, Major kMajor_, int kMn_>
struct SwizzledTile {
  static_assert(sizeof(T) == 2);
  static constexpr Major kMajor = kMajor_;
  static constexpr int kMn = kMn_;
  static constexpr int kK = 64;
  static constexpr int kAtom = 64;  // elements of a row of memory
  static constexpr int kAtoms = kMn / kAtom;
  static constexpr int kAtomBytes = kK * kSwizzleRowBytes;
  static constexpr int kBytes = kMn * kK * static_cast<int>(sizeof(T));
  // A TMA copy moves kAtom columns by this many rows of memory: of an operand that `blocks` share, each copies a part.
  static constexpr int box_rows(int blocks) { return kMajor == Major::kK ? kMn / blocks : kK; }

  // copy(shared, mn) of every TMA copy with which block `rank` of `blocks` fills its part; mn counts from the tile's
  // first.
  template <class Copy>
  static TOKCORE_DEVICE void for_each_copy(unsigned char* shared, int blocks, int rank, Copy&& copy) {
    if constexpr (kMajor == Major::kK) {
      const int first = rank * (kMn / blocks);
      copy(shared + first * kSwizzleRowBytes, first);
    } else {
      const int atoms = kAtoms / blocks;
#pragma unroll
      for (int i = 0; i < kAtoms; ++i) {
        if (i < atoms) copy(shared + (rank * atoms + i) * kAtomBytes, (rank * atoms + i) * kAtom);
      }
    }
  }
  // Bytes from one step of 16 k to the next.
  static constexpr int kStepBytes = kMajor == Major::kK ? 16 * static_cast<int>(sizeof(T)) : 16 * kSwizzleRowBytes;
};

template <class T, Major kMajorA, Major kMajorB, int kBlockM_, int kBlockN_>
class GemmSm90 {
 public:
  static constexpr int kBlockM = kBlockM_;
  static constexpr int kBlockN = kBlockN_;
  static constexpr int kConsumers = 2;  // warpgroups that multiply
  static constexpr int kCluster = 2;    // blocks
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kStages = 4;

  using TileA = SwizzledTile<T, kMajorA, kBlockM>;
  using TileB = SwizzledTile<T, kMajorB, kBlockN>;
  static constexpr int kBlockK = TileA::kK;
  static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes + 128;  // and the barriers

  // Products of 64 rows that a warpgroup makes side by side. Two of them take turns at groups of eight rows, so that a
  // warp's rows lie together: 32 warp + {0, 16} are the first one's and 32 warp + {8, 24} the second one's.
  static constexpr int kProducts = kBlockM / (64 * kConsumers);
  static_assert(kProducts == 1 || (kProducts == 2 && kMajorA == Major::kK));
  using Fragment = StripFragment<kProducts, kBlockN>;

  // Which operand the blocks of a cluster share.
  static constexpr bool kSharesA = kBlockM > kBlockN;

  template <bool kIsA>
  static constexpr uint32_t box_rows() {
    using Tile = std::conditional_t<kIsA, TileA, TileB>;
    return static_cast<uint32_t>(Tile::box_rows(kIsA == kSharesA ? kCluster : 1));
  }
  // The map of a matrix [num_rows, num_columns] from which operand A or B is copied.
  template <bool kIsA>
  static CUtensorMap make_map(const void* base, int64_t num_rows, int64_t num_columns, int64_t stride_row) {
    return make_matrix_map(tensor_map_element(kDTypeOf<T>), base, static_cast<uint64_t>(num_rows),
                           static_cast<uint64_t>(num_columns), static_cast<uint64_t>(stride_row) * sizeof(T),
                           box_rows<kIsA>(), TileA::kAtom, TensorMapSwizzle::k128);
  }

  // Clusters take items one after the other, each running on a pair of multiprocessors.
  static LaunchConfig launch_config(int64_t num_items, int more_shared_bytes, Stream stream, const char* name) {
    const int64_t clusters = max(min(num_items, int64_t{current_multiprocessors() / kCluster}), int64_t{num_items > 0});
    return {.grid = {static_cast<unsigned>(clusters * kCluster)},
            .threads = kThreads,
            .shared_bytes = static_cast<size_t>(kSharedBytes + more_shared_bytes),
            .stream = stream,
            .cluster = kCluster,
            .name = name};
  }

  using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
  using EmptyBarrier = cutlass::arch::ClusterBarrier;

  TOKCORE_DEVICE explicit GemmSm90(unsigned char* shared) : shared_(shared) {
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        FullBarrier::init(full(stage), 1);
        EmptyBarrier::init(empty(stage), kCluster * kConsumers * 4);  // every warp of the cluster
      }
      cutlass::arch::fence_barrier_init();
    }
    cute::cluster_arrive_relaxed();  // the other block's copies and arrivals may come from now on
    cute::cluster_wait();
  }

  // The block's place in its cluster, and the cluster's in the grid.
  static TOKCORE_DEVICE int rank() { return static_cast<int>(blockIdx.x) % kCluster; }
  static TOKCORE_DEVICE int cluster() { return static_cast<int>(blockIdx.x) / kCluster; }
  static TOKCORE_DEVICE int num_clusters() { return static_cast<int>(gridDim.x) / kCluster; }

  // The first warpgroup copies; one thread of it does so.
  static TOKCORE_DEVICE bool is_producer() { return threadIdx.x < 128; }
  static TOKCORE_DEVICE bool is_copying_thread() { return threadIdx.x == 0; }
  // Of a consumer: where in the block's tile its warp's fragment starts.
  static TOKCORE_DEVICE int consumer_warp() { return static_cast<int>(threadIdx.x) / 32 - 4; }
  static TOKCORE_DEVICE int row() { return consumer_warp() * Fragment::kRows; }
  static TOKCORE_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }

  static TOKCORE_DEVICE void give_registers() { cutlass::arch::warpgroup_reg_dealloc<40>(); }
  static TOKCORE_DEVICE void take_registers() { cutlass::arch::warpgroup_reg_alloc<232>(); }

  // Copies the operands of num_tiles tiles. copy_a(copy, tile, mn, k_block) and copy_b likewise start one copy each:
  // they call copy(map, column, row) or copy(map, column, row, plane) with where the part lies whose first row or
  // column of the operand is mn.
  template <class CopyA, class CopyB>
  TOKCORE_DEVICE void produce(int num_tiles, int num_k_blocks, CopyA&& copy_a, CopyB&& copy_b) {
    for (int tile = 0; tile < num_tiles; ++tile) {
      for (int k_block = 0; k_block < num_k_blocks; ++k_block) {
        EmptyBarrier::wait(empty(stage_), phase_ ^ 1);
        FullBarrier::arrive_and_expect_tx(full(stage_), kStageBytes);
        unsigned char* stage = shared_ + stage_ * kStageBytes;
        fill<TileA, kSharesA>(stage, tile, k_block, copy_a);
        fill<TileB, !kSharesA>(stage + TileA::kBytes, tile, k_block, copy_b);
        next_stage();
      }
    }
  }

  // Waits until every stage has been given back by the whole cluster: a block must not end while copies to it or
  // arrivals are under way.
  TOKCORE_DEVICE void drain() {
    for (int i = 0; i < kStages; ++i) {
      EmptyBarrier::wait(empty(stage_), phase_ ^ 1);
      next_stage();
    }
  }

  // Multiplies: start(fragment, tile) sets a fragment before and finish(fragment, tile) takes it after the sum.
  template <class Start, class Finish>
  TOKCORE_DEVICE void consume(int num_tiles, int num_k_blocks, Start&& start, Finish&& finish) {
    Fragment fragment;
    for (int tile = 0; tile < num_tiles; ++tile) {
      start(fragment, tile);
      if (num_k_blocks > 0) {
        // The first stage stands before the loop: where sums start from memory, ptxas takes its entry for a place that
        // sets them among products, and lets each product wait for the one before.
        FullBarrier::wait(full(stage_), phase_);
        multiply_stage(fragment, shared_ + stage_ * kStageBytes);
        int previous = stage_;
        next_stage();
        for (int k_block = 1; k_block < num_k_blocks; ++k_block) {
          FullBarrier::wait(full(stage_), phase_);
          multiply_stage(fragment, shared_ + stage_ * kStageBytes);
          cute::warpgroup_wait<1>();  // the products of the stage before are done
          give_back(previous);
          previous = stage_;
          next_stage();
        }
        cute::warpgroup_wait<0>();
        fence_sums(fragment);
        give_back(previous);
      }
      finish(fragment, tile);
    }
  }

 private:
  TOKCORE_DEVICE uint64_t* full(int stage) const {
    return reinterpret_cast<uint64_t*>(shared_ + kStages * kStageBytes) + stage;
  }
  TOKCORE_DEVICE uint64_t* empty(int stage) const { return full(kStages + stage); }

  TOKCORE_DEVICE void next_stage() {
    if (++stage_ == kStages) {
      stage_ = 0;
      phase_ ^= 1;
    }
  }
  // To both blocks: each copies into the other.
  TOKCORE_DEVICE void give_back(int stage) const {
    if (lane() < kCluster) EmptyBarrier::arrive(empty(stage), static_cast<uint32_t>(lane()), 1);
  }

  // One TMA copy into this block, or into all of the cluster.
  static constexpr uint16_t kWholeCluster = (1 << kCluster) - 1;
  static constexpr uint64_t kCacheHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  template <bool kIsShared>
  struct TmaCopy {
    uint64_t* barrier;
    unsigned char* to;
    TOKCORE_DEVICE void operator()(const CUtensorMap& map, int column, int row) const {
      if constexpr (kIsShared) {
        cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&map, barrier, kWholeCluster, kCacheHint, to, column, row);
      } else {
        cute::SM90_TMA_LOAD_2D::copy(&map, barrier, kCacheHint, to, column, row);
      }
    }
    TOKCORE_DEVICE void operator()(const CUtensorMap& map, int column, int row, int plane) const {
      if constexpr (kIsShared) {
        cute::SM90_TMA_LOAD_MULTICAST_3D::copy(&map, barrier, kWholeCluster, kCacheHint, to, column, row, plane);
      } else {
        cute::SM90_TMA_LOAD_3D::copy(&map, barrier, kCacheHint, to, column, row, plane);
      }
    }
  };

  template <class Tile, bool kIsShared, class Copy>
  TOKCORE_DEVICE void fill(unsigned char* to, int tile, int k_block, Copy&& copy) const {
    Tile::for_each_copy(to, kIsShared ? kCluster : 1, kIsShared ? rank() : 0, [&](unsigned char* part, int mn) {
      copy(TmaCopy<kIsShared>{full(stage_), part}, tile, mn, k_block);
    });
  }

  TOKCORE_DEVICE void multiply_stage(Fragment& fragment, const unsigned char* stage) const {
    using Instruction = typename WgmmaInstruction<kDTypeOf<T>, kMajorA, kMajorB, kBlockN>::Type;
    constexpr int kStepsOfStage = kBlockK / 16;
    constexpr int kAtomsOfGroup = kProducts * kSwizzleGroupBytes;
    const int warpgroup = consumer_warp() / 4;
    const unsigned char* tile_a = stage + warpgroup * (TileA::kBytes / kConsumers);
    const unsigned char* tile_b = stage + TileA::kBytes;
    fence_sums(fragment);
    cute::warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < kStepsOfStage; ++step) {
      const uint64_t b = matrix_descriptor(tile_b + step * TileB::kStepBytes, kSwizzleGroupBytes,
                                           SwizzledTile<T, kMajorB, 64>::kAtomBytes);
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        const uint64_t a = matrix_descriptor(tile_a + product * kSwizzleGroupBytes + step * TileA::kStepBytes,
                                             kAtomsOfGroup, TileA::kAtomBytes);
        // Of a group of 8 columns the instruction has {first row: even, odd; 8 rows on: even, odd}.
        const auto sum = [&](size_t index) -> float& {
          const int group = static_cast<int>(index) / 4, half = static_cast<int>(index) / 2 % 2;
          const int slot = kProducts == 1 ? half : half * 2 + product;
          return fragment.at(slot, group, static_cast<int>(index) % 2);
        };
        wgmma<Instruction>(a, b, sum, std::make_index_sequence<kBlockN / 2>());
      }
    }
    cute::warpgroup_commit_batch();
    fence_sums(fragment);
  }

  unsigned char* shared_;
  int stage_ = 0;
  uint32_t phase_ = 0;
};

}  // namespace tokcore::cuda
