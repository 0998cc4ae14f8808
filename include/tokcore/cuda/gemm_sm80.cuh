// The mainloop of products of tiles from compute capability 8.0 on: cp.async into a ring of stages, ldmatrix, mma.sync.
//
// Of 16-bit elements a block of four warps makes tiles of 128 x 128, each warp 64 x 64 of it: the widest warp tile that
// registers hold reads least from shared memory (16 KB against 24 KB of eight warps of 64 x 32, per 256 cycles of
// products), and two such blocks fit on a multiprocessor, so that one multiplies while the other works on a finished
// tile. An operand of fp32 takes three registers and a sum two, so eight warps make 32 x 32 each of tiles of 64 x 128.
#pragma once

#include "tokcore/cuda/mma_sm80.cuh"
#include "tokcore/cuda/operand_tile.cuh"
#include "tokcore/cuda/strip_fragment.cuh"

namespace tokcore::cuda {

template <class T, Major kMajorA, Major kMajorB>
class GemmSm80 {
 public:
  static constexpr int kBlockM = sizeof(T) == 4 ? 64 : 128;
  static constexpr int kBlockN = 128;
  static constexpr int kWarpsM = 2;
  static constexpr int kWarpsN = sizeof(T) == 4 ? 4 : 2;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 1 : 2;
  static constexpr int kStages = 3;

  using Fragment = StripFragment<kBlockM / kWarpsM / 16, kBlockN / kWarpsN>;
  using TileA = OperandTile<T, kMajorA, kBlockM>;
  using TileB = OperandTile<T, kMajorB, kBlockN>;
  static constexpr int kBlockK = TileA::kK;
  static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;

  TOKCORE_DEVICE explicit GemmSm80(unsigned char* shared) : shared_(shared) {}

  static TOKCORE_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // Where in the block's tile the warp's fragment starts.
  static TOKCORE_DEVICE int row() { return static_cast<int>(threadIdx.x) / 32 % kWarpsM * Fragment::kRows; }
  static TOKCORE_DEVICE int column() { return static_cast<int>(threadIdx.x) / 32 / kWarpsM * Fragment::kColumns; }

  // Makes `num_tiles` tiles of num_k_blocks * kBlockK terms each. load_a and load_b(shared, tile, k_block) fill an
  // operand's tile, start(fragment, tile) sets a fragment before and finish(fragment, tile) takes it after the sum. The
  // ring runs on from tile to tile: while finish works, the next tile's operands arrive.
  template <class LoadA, class LoadB, class Start, class Finish>
  TOKCORE_DEVICE void run(int num_tiles, int num_k_blocks, LoadA&& load_a, LoadB&& load_b, Start&& start,
                          Finish&& finish) {
    int load_tile = 0, load_k = 0;
    const auto load_next = [&](int stage) {
      if (load_tile < num_tiles && num_k_blocks > 0) {
        load_a(shared_ + stage * kStageBytes, load_tile, load_k);
        load_b(shared_ + stage * kStageBytes + TileA::kBytes, load_tile, load_k);
        if (++load_k == num_k_blocks) {
          load_k = 0;
          ++load_tile;
        }
      }
      cute::cp_async_fence();
    };
    for (int i = 0; i < kStages - 1; ++i) load_next(i);

    Fragment fragment;
    int stage = 0;
    const auto multiply = [&](Fragment& sums) {
      cute::cp_async_wait<kStages - 2>();
      __syncthreads();  // the stage has arrived for all, and all are done with the one that load_next fills
      load_next(stage == 0 ? kStages - 1 : stage - 1);
      multiply_stage(sums, shared_ + stage * kStageBytes);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    };
    for (int tile = 0; tile < num_tiles; ++tile) {
      start(fragment, tile);
      if constexpr (kStretch == 0) {
        for (int k_block = 0; k_block < num_k_blocks; ++k_block) multiply(fragment);
      } else {
        for (int k_block = 0; k_block < num_k_blocks;) {
          Fragment stretch;
          stretch.clear();
          const int end = k_block + kStretch < num_k_blocks ? k_block + kStretch : num_k_blocks;
          for (; k_block < end; ++k_block) multiply(stretch);
          fragment.for_each([&](float& value, int slot, int group, int odd) { value += stretch.at(slot, group, odd); });
        }
      }
      finish(fragment, tile);
    }
    cute::cp_async_wait<0>();
  }

 private:
  static constexpr int kSteps = 2;  // of mma.sync in the 64 bytes of k of a stage
  // Products of fp32 are summed by stretches of k, or the error of a long sum would show.
  static constexpr int kStretch = sizeof(T) == 4 ? 8 : 0;

  TOKCORE_DEVICE void multiply_stage(Fragment& fragment, const unsigned char* stage) const {
    using Mma = MmaSm80<T>;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      typename Mma::PreparedA a[Fragment::kStrips];
#pragma unroll
      for (int strip = 0; strip < Fragment::kStrips; ++strip) {
        a[strip] = Mma::prepare_a(read_a<TileA>(stage, row() + strip * 16, step, lane()));
      }
#pragma unroll
      for (int group = 0; group < Fragment::kGroups; group += 2) {
        FragmentB pair[2];
        read_b<TileB>(stage + TileA::kBytes, column() + group * 8, step, lane(), pair);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const typename Mma::PreparedB b = Mma::prepare_b(pair[i]);
#pragma unroll
          for (int strip = 0; strip < Fragment::kStrips; ++strip) {
            Mma::multiply(fragment.values[strip][group + i], a[strip], b);
          }
        }
      }
    }
  }

  unsigned char* shared_;
};

}  // namespace tokcore::cuda
