// The forward's sweep over the vocabulary from compute capability 8.0 on.
//
// Grid: a block for each tile of 128 active positions and each split of the vocabulary. A split is a stretch of
// vocabulary blocks, which are the unit of partial statistics and depend on V alone.
#pragma once

#include "cross_entropy/linear_logprobs_statistics.cuh"
#include "cross_entropy/linear_logprobs_sweeps_cuda.cuh"
#include "tokcore/cuda/gemm_sm80.cuh"
#include "tokcore/cuda/launch_over.h"

namespace tokcore::cross_entropy {

template <class T>
using LogitsGemmSm80 = cuda::GemmSm80<T, cuda::Major::kK, cuda::Major::kK>;

template <class T>
constexpr bool kTileIsAsTold =
    LogitsGemmSm80<T>::kBlockM == TileSm80<T>::kRows && LogitsGemmSm80<T>::Fragment::kRows == TileSm80<T>::kWarpRows &&
    LogitsGemmSm80<T>::Fragment::kColumns == TileSm80<T>::kWarpColumns &&
    LogitsGemmSm80<T>::kBlocksPerMultiprocessor == TileSm80<T>::kBlocksPerMultiprocessor;
static_assert(kTileIsAsTold<BFloat16> && kTileIsAsTold<float>);

template <class T, bool kAligned>
__global__ void __launch_bounds__(LogitsGemmSm80<T>::kThreads, LogitsGemmSm80<T>::kBlocksPerMultiprocessor)
    linear_logprobs_forward_sm80_kernel(const ForwardSweep<T> sweep) {
  using Gemm = LogitsGemmSm80<T>;
  using Fragment = typename Gemm::Fragment;
  TOKCORE_SHARED_MEMORY(shared);
  const SweepStatistics& statistics = sweep.statistics;

  // Which rows, and which vocabulary blocks.
  const cuda::TileCoordinates at =
      cuda::tile_in_order(blockIdx.x, statistics.padded_rows / Gemm::kBlockM, sweep.num_splits, sweep.row_tile_group);
  const int64_t first_row = at.row * Gemm::kBlockM;
  const int64_t num_rows = statistics.active.count_from(statistics.first_active, statistics.num_rows);
  if (first_row >= num_rows) return;
  const int tiles_per_block = static_cast<int>(sweep.vocab_block / Gemm::kBlockN);
  const int first_tile = static_cast<int>(sweep.first_block(at.column)) * tiles_per_block;
  const int end_tile = static_cast<int>(
      min(sweep.first_block(at.column + 1) * tiles_per_block, ceil_div(statistics.vocab_size, Gemm::kBlockN)));

  // Products, tile by tile.
  Gemm gemm(shared);
  const int warp_column = gemm.column() / Fragment::kColumns;
  auto* scratch = reinterpret_cast<RankingScratch<Fragment>*>(shared + Gemm::kSharedBytes);
  RowStatistics<Fragment> rows(statistics, first_row + gemm.row(),
                               static_cast<int>(at.column) * Gemm::kWarpsN + warp_column, scratch, gemm.lane());
  const T* e = sweep.e + (statistics.first_active + first_row) * sweep.e_columns;
  const int rows_left = static_cast<int>(min(num_rows - first_row, Gemm::kBlockM));
  const auto load_e = [&](unsigned char* tile, int, int k_block) {
    cuda::fill_tile<typename Gemm::TileA, Gemm::kThreads, true>(tile, threadIdx.x, e, sweep.e_columns, rows_left,
                                                                k_block * Gemm::kBlockK, sweep.e_columns);
  };
  const auto load_c = [&](unsigned char* tile, int index, int k_block) {
    const int64_t vocab_row = int64_t{first_tile + index} * Gemm::kBlockN;
    cuda::fill_tile<typename Gemm::TileB, Gemm::kThreads, kAligned>(
        tile, threadIdx.x, sweep.c + vocab_row * sweep.stride_c_row, sweep.stride_c_row,
        static_cast<int>(min(statistics.vocab_size - vocab_row, Gemm::kBlockN)), k_block * Gemm::kBlockK,
        sweep.hidden_size);
  };
  const auto start = [](Fragment& fragment, int) { fragment.clear(); };
  const auto finish = [&](Fragment& fragment, int index) {
    const int tile = first_tile + index;
    const int part = tile / tiles_per_block * Gemm::kWarpsN + warp_column;
    rows.add(fragment, int64_t{tile} * Gemm::kBlockN + gemm.column(), part);
    const bool is_last = int64_t{tile + 1} * Gemm::kBlockN >= statistics.vocab_size;
    if (is_last || (tile + 1) % tiles_per_block == 0) rows.store_part(part);
  };
  gemm.run(end_tile - first_tile, static_cast<int>(ceil_div(sweep.hidden_size, Gemm::kBlockK)), load_e, load_c, start,
           finish);
}

template <class T, bool kAligned>
void launch_forward_sweep_sm80(const ForwardSweep<T>& sweep, cuda::Stream stream) {
  using Gemm = LogitsGemmSm80<T>;
  const bool ranks = sweep.statistics.top_keys != nullptr;
  const size_t scratch = ranks ? Gemm::kThreads / 32 * sizeof(RankingScratch<typename Gemm::Fragment>) : 0;
  const int64_t blocks = sweep.statistics.padded_rows / Gemm::kBlockM * sweep.num_splits;
  cuda::LaunchConfig config = cuda::launch_over(blocks, 1, Gemm::kThreads, stream, "linear_logprobs_forward_sm80");
  config.shared_bytes = Gemm::kSharedBytes + scratch;
  cuda::launch<linear_logprobs_forward_sm80_kernel<T, kAligned>>(config, sweep);
}

}  // namespace tokcore::cross_entropy
