// Victim: a GEMM of the portable kind. Multi-stage cp.async, swizzled shared memory, ldmatrix, mma.sync, an epilogue
// that passes through shared memory again, and row sums by shuffles.
//
// c [M, N] fp32 = a [M, K] bf16 * b [N, K]^T bf16;  row_sums [ceil(N / 64), M] fp32, the sums of c over 64 columns
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>

#include "bindings.h"
#include "mutations/mutations.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"

namespace tokcore::simt {
namespace {

enum class Mutation {
  kNone,
  kMissingCommit,
  kMissingWait,
  kWaitForOneTooFew,
  kMissingBarrier,
  kRefillBeforeBarrier,
  kDivergentBarrier,
  kBarrierInBranches,
  kMissingShuffle,
  kShuffleWithinHalf,
  kMissingSyncwarp,
  kMissingBarrierOfEpilogue,
  kRowMaskOffByOne,
  kDepthMaskOffByOne,
  kStoreMaskOffByOne,
  kReadPastEnd,
  kMisalignedLdmatrix,
  kLdmatrixPastEnd,
  kUnswizzledRead,
  kUnpredicatedCopy,
  kMisalignedCopy,
};

constexpr const char* kNames[] = {
    "missing_commit",
    "missing_wait",
    "wait_for_one_too_few",
    "missing_barrier",
    "refill_before_barrier",
    "divergent_barrier",
    "barrier_in_branches",
    "missing_shuffle",
    "shuffle_within_half",
    "missing_syncwarp",
    "missing_barrier_of_epilogue",
    "row_mask_off_by_one",
    "depth_mask_off_by_one",
    "store_mask_off_by_one",
    "read_past_end",
    "misaligned_ldmatrix",
    "ldmatrix_past_end",
    "unswizzled_read",
    "unpredicated_copy",
    "misaligned_copy",
};

static_assert(std::size(kNames) == static_cast<size_t>(Mutation::kMisalignedCopy));

constexpr int kBlock = 64;  // rows of a and of b in a tile
constexpr int kDepth = 32;  // of K in a tile
constexpr int kStages = 3;
constexpr int kThreads = 128;  // 2 x 2 warps, each 32 x 32
constexpr int kChunk = 8;      // elements that one cp.async moves
constexpr int kTileBytes = kBlock * kDepth * 2;
constexpr int kSharedBytes = kStages * 2 * kTileBytes;

struct GemmParams {
  const uint16_t* a;  // [M, K] bf16
  const uint16_t* b;  // [N, K] bf16
  float* c;           // [M, N]
  float* row_sums;    // [ceil(N / 64), M]
  int num_rows, num_columns, depth;
};

// Bytes from the beginning of a tile to chunk `chunk` of `row`: four chunks a row, permuted so that the eight rows of
// an ldmatrix fall into different banks.
TOKCORE_DEVICE int tile_offset(int row, int chunk) { return row * kDepth * 2 + ((chunk ^ (row / 2 % 4)) * kChunk * 2); }

template <Mutation kMutation>
TOKCORE_DEVICE void load_tile(unsigned char* tile, const uint16_t* matrix, int num_rows, int depth, int first_row,
                              int first_k) {
  for (int i = static_cast<int>(threadIdx.x); i < kBlock * kDepth / kChunk; i += kThreads) {
    const int row = i / (kDepth / kChunk);
    const int chunk = i % (kDepth / kChunk);
    const int k = first_k + chunk * kChunk;
    bool valid = first_row + row < num_rows && k < depth;
    if constexpr (kMutation == Mutation::kRowMaskOffByOne) valid = first_row + row <= num_rows && k < depth;
    if constexpr (kMutation == Mutation::kDepthMaskOffByOne) valid = first_row + row < num_rows && k <= depth;
    const uint16_t* source = valid ? matrix + static_cast<int64_t>(first_row + row) * depth + k : matrix;
    if constexpr (kMutation == Mutation::kMisalignedCopy) source += 4;
    auto& destination = *reinterpret_cast<cute::uint128_t*>(tile + tile_offset(row, chunk));
    const auto& from = *reinterpret_cast<const cute::uint128_t*>(source);
    if constexpr (kMutation == Mutation::kUnpredicatedCopy) {
      cute::SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>::copy(from, destination);
    } else {
      cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(from, destination, valid);
    }
  }
}

// Four 8x8 matrices: 16 rows from `row` on, 16 of K from `k` on.
template <Mutation kMutation>
TOKCORE_DEVICE void load_fragment(const unsigned char* tile, int row, int k, uint32_t (&fragment)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int offset = tile_offset(row + lane % 16, k / kChunk + lane / 16);
  if constexpr (kMutation == Mutation::kMisalignedLdmatrix) offset += 8;
  if constexpr (kMutation == Mutation::kLdmatrixPastEnd) offset += 2 * kStages * kTileBytes;
  if constexpr (kMutation == Mutation::kUnswizzledRead)
    offset = (row + lane % 16) * kDepth * 2 + (k + lane / 16 * kChunk) * 2;
  cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const cute::uint128_t*>(tile + offset), fragment[0], fragment[1],
                                fragment[2], fragment[3]);
}

template <Mutation kMutation>
__global__ void gemm_kernel(const GemmParams params) {
  TOKCORE_SHARED_MEMORY(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int warp_row = warp / 2 * 32;
  const int warp_column = warp % 2 * 32;
  const int first_row = static_cast<int>(blockIdx.y) * kBlock;
  const int first_column = static_cast<int>(blockIdx.x) * kBlock;
  const int num_tiles = (params.depth + kDepth - 1) / kDepth;

  // ---- pipeline: stage t % kStages holds tile t
  const auto tile_of_a = [&](int t) { return shared + t % kStages * 2 * kTileBytes; };
  const auto tile_of_b = [&](int t) { return tile_of_a(t) + kTileBytes; };
  const auto issue = [&](int t) {
    if (t < num_tiles) {
      load_tile<kMutation>(tile_of_a(t), params.a, params.num_rows, params.depth, first_row, t * kDepth);
      load_tile<kMutation>(tile_of_b(t), params.b, params.num_columns, params.depth, first_column, t * kDepth);
    }
    if constexpr (kMutation != Mutation::kMissingCommit) cute::cp_async_fence();
  };
  for (int t = 0; t < kStages - 1; ++t) issue(t);

  // ---- mainloop: acc[i][j] is the 16 x 8 tile i, j of the warp's 32 x 32
  float acc[2][4][4] = {};
  for (int t = 0; t < num_tiles; ++t) {
    if constexpr (kMutation == Mutation::kWaitForOneTooFew) {
      cute::cp_async_wait<kStages - 1>();
    } else if constexpr (kMutation != Mutation::kMissingWait) {
      cute::cp_async_wait<kStages - 2>();
    }
    if constexpr (kMutation == Mutation::kRefillBeforeBarrier) issue(t + kStages - 1);
    if constexpr (kMutation == Mutation::kDivergentBarrier) {
      if (warp != 3 || t != 1) __syncthreads();
    } else if constexpr (kMutation == Mutation::kBarrierInBranches) {
      if (lane < 16) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    } else if constexpr (kMutation != Mutation::kMissingBarrier) {
      __syncthreads();
    }
    if constexpr (kMutation != Mutation::kRefillBeforeBarrier) issue(t + kStages - 1);
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[2][4], b[2][4];
      for (int i = 0; i < 2; ++i) load_fragment<kMutation>(tile_of_a(t), warp_row + 16 * i, k, a[i]);
      for (int j = 0; j < 2; ++j) load_fragment<kMutation>(tile_of_b(t), warp_column + 16 * j, k, b[j]);
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          float (&d)[4] = acc[i][j];
          cute::SM80_16x8x16_F32BF16BF16F32_TN::fma(d[0], d[1], d[2], d[3], a[i][0], a[i][1], a[i][2], a[i][3],
                                                    b[j / 2][j % 2], b[j / 2][j % 2 + 2], d[0], d[1], d[2], d[3]);
        }
      }
    }
  }
  cute::cp_async_wait<0>();
  if constexpr (kMutation != Mutation::kMissingBarrierOfEpilogue) __syncthreads();  // the tiles have been read

  // ---- row sums: over the quad of lanes that share a row, then over the two warps of a row
  auto* partial_sums = reinterpret_cast<float*>(shared);       // [2, kBlock]
  float* staging = partial_sums + 2 * kBlock + warp * 16 * 8;  // [16, 8] of each warp
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      float sum = 0.0f;
      for (int j = 0; j < 4; ++j) sum += acc[i][j][2 * half] + acc[i][j][2 * half + 1];
      sum += __shfl_xor_sync(kFullMask, sum, 1);
      if constexpr (kMutation == Mutation::kShuffleWithinHalf) {
        sum += __shfl_xor_sync(0x0000ffffu, sum, 2);
      } else if constexpr (kMutation != Mutation::kMissingShuffle) {
        sum += __shfl_xor_sync(kFullMask, sum, 2);
      }
      if (lane % 4 == 0) partial_sums[warp % 2 * kBlock + warp_row + 16 * i + 8 * half + lane / 4] = sum;
    }
  }
  __syncthreads();
  if (thread < kBlock && first_row + thread < params.num_rows) {
    float sum = partial_sums[thread] + partial_sums[kBlock + thread];
    if constexpr (kMutation == Mutation::kReadPastEnd)
      sum += 0.0f * params.row_sums[gridDim.x * params.num_rows + thread];
    params.row_sums[blockIdx.x * params.num_rows + first_row + thread] = sum;
  }

  // ---- c: through the warp's staging, so that a lane stores neighbours of one row
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int v = 0; v < 4; ++v) staging[(lane / 4 + v / 2 * 8) * 8 + lane % 4 * 2 + v % 2] = acc[i][j][v];
      if constexpr (kMutation != Mutation::kMissingSyncwarp) __syncwarp();
      const int row = first_row + warp_row + 16 * i + lane / 2;
      for (int v = 0; v < 4; ++v) {
        const int column = first_column + warp_column + 8 * j + lane % 2 * 4 + v;
        bool valid = row < params.num_rows && column < params.num_columns;
        if constexpr (kMutation == Mutation::kStoreMaskOffByOne)
          valid = row < params.num_rows && column <= params.num_columns;
        if (valid)
          params.c[static_cast<int64_t>(row) * params.num_columns + column] = staging[lane / 2 * 8 + lane % 2 * 4 + v];
      }
      __syncwarp();
    }
  }
}

struct LaunchGemm {
  template <Mutation kMutation>
  static void run(const GemmParams& params) {
    const cuda::Grid grid{static_cast<unsigned>((params.num_columns + kBlock - 1) / kBlock),
                          static_cast<unsigned>((params.num_rows + kBlock - 1) / kBlock)};
    cuda::launch<&gemm_kernel<kMutation>>(
        cuda::LaunchConfig{.grid = grid, .threads = kThreads, .shared_bytes = kSharedBytes, .name = "gemm_sm80"},
        params);
  }
};

constexpr MutationTable<Mutation, std::size(kNames), LaunchGemm> kTable{kNames};

const Bindings bindings([](pybind11::module_& m) {
  m.def("gemm_sm80_mutations", [] { return kTable.list(); });
  m.def(
      "gemm_sm80",
      [](const std::string& mutation, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t row_sums, int num_rows,
         int num_columns, int depth) {
        kTable.run(mutation, GemmParams{pointer<const uint16_t>(a), pointer<const uint16_t>(b), pointer<float>(c),
                                        pointer<float>(row_sums), num_rows, num_columns, depth});
      },
      WithoutGil());
});

}  // namespace
}  // namespace tokcore::simt
