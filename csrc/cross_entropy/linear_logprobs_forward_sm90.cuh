// The forward's sweep over the vocabulary on Hopper.
//
// Persistent: clusters of two blocks take items, each a tile of 256 active positions and a split of the vocabulary; the
// blocks of a cluster take its tiles in turn and share e. The statistics on finished tiles are those of every
// architecture.
#pragma once

#include "cross_entropy/linear_logprobs_statistics.cuh"
#include "cross_entropy/linear_logprobs_sweeps_cuda.cuh"
#include "tokcore/cuda/gemm_sm90.cuh"
#include "tokcore/cuda/launch.h"

namespace tokcore::cross_entropy {

template <class T>
using LogitsGemmSm90 = cuda::GemmSm90<T, cuda::Major::kK, cuda::Major::kK, 256, 128>;

template <class T>
struct ForwardSweepSm90 {
  ForwardSweep<T> sweep;
  CUtensorMap e;  // [padded T, e_columns]
  CUtensorMap c;  // [V, C]
};

// An item: which rows, and which tiles of 128 vocabulary rows.
template <class T>
struct ForwardItemSm90 {
  int first_row;
  int split;
  int first_tile;
  int num_steps;  // of the cluster, kCluster tiles each; 0 where no active position is

  TOKCORE_DEVICE ForwardItemSm90(const ForwardSweep<T>& sweep, int index, int num_rows) {
    using Gemm = LogitsGemmSm90<T>;
    const cuda::TileCoordinates at = cuda::tile_in_order(
        index, num_row_tiles(sweep), static_cast<int>(sweep.num_splits), static_cast<int>(sweep.row_tile_group));
    const int tiles_per_block = static_cast<int>(sweep.vocab_block) / Gemm::kBlockN;
    first_row = at.row * Gemm::kBlockM;
    split = at.column;
    first_tile = sweep.first_block(split) * tiles_per_block;  // even: a block is whole pairs of tiles
    const int end_tile = min(sweep.first_block(split + 1) * tiles_per_block,
                             ceil_div(static_cast<int>(sweep.statistics.vocab_size), Gemm::kBlockN));
    num_steps = first_row < num_rows ? ceil_div(end_tile - first_tile, Gemm::kCluster) : 0;
  }
  // The block's tile in a step. After an odd number of tiles the last one lies past the vocabulary and holds nothing.
  TOKCORE_DEVICE int tile_of(int step) const {
    using Gemm = LogitsGemmSm90<T>;
    return first_tile + step * Gemm::kCluster + Gemm::rank();
  }
  static TOKCORE_HOST_DEVICE int num_row_tiles(const ForwardSweep<T>& sweep) {
    return ceil_div(static_cast<int>(sweep.statistics.padded_rows), LogitsGemmSm90<T>::kBlockM);
  }
};

template <class T>
__global__ void __launch_bounds__(LogitsGemmSm90<T>::kThreads, 1)
    linear_logprobs_forward_sm90_kernel(const __grid_constant__ ForwardSweepSm90<T> params) {
  using Gemm = LogitsGemmSm90<T>;
  using Fragment = typename Gemm::Fragment;
  TOKCORE_SHARED_MEMORY(shared);
  const ForwardSweep<T>& sweep = params.sweep;
  const SweepStatistics& statistics = sweep.statistics;
  const int num_items = ForwardItemSm90<T>::num_row_tiles(sweep) * static_cast<int>(sweep.num_splits);
  const int num_rows = static_cast<int>(statistics.active.count_from(statistics.first_active, statistics.num_rows));
  const int num_k_blocks = ceil_div(static_cast<int>(sweep.hidden_size), Gemm::kBlockK);
  Gemm gemm(shared);

  if (Gemm::is_producer()) {
    Gemm::give_registers();
    if (!Gemm::is_copying_thread()) return;
    for (int index = Gemm::cluster(); index < num_items; index += Gemm::num_clusters()) {
      const ForwardItemSm90<T> item(sweep, index, num_rows);
      gemm.produce(
          item.num_steps, num_k_blocks,
          [&](auto&& copy, int, int mn, int k_block) {
            copy(params.e, k_block * Gemm::kBlockK, static_cast<int>(statistics.first_active) + item.first_row + mn);
          },
          [&](auto&& copy, int step, int mn, int k_block) {
            copy(params.c, k_block * Gemm::kBlockK, item.tile_of(step) * Gemm::kBlockN + mn);
          });
    }
    gemm.drain();
    return;
  }

  Gemm::take_registers();
  const int tiles_per_block = static_cast<int>(sweep.vocab_block) / Gemm::kBlockN;
  for (int index = Gemm::cluster(); index < num_items; index += Gemm::num_clusters()) {
    const ForwardItemSm90<T> item(sweep, index, num_rows);
    if (item.num_steps == 0) continue;
    const int first_row = item.first_row + Gemm::row();
    // By warp of the block, of which the first four do not rank.
    auto* scratch = reinterpret_cast<RankingScratch<Fragment>*>(shared + Gemm::kSharedBytes) - 4;
    RowStatistics<Fragment> rows(statistics, first_row, item.split * Gemm::kCluster + Gemm::rank(), scratch,
                                 Gemm::lane());
    const bool has_rows = first_row < statistics.padded_rows;  // of the last tile, half may lie past the padding
    const auto start = [](Fragment& fragment, int) { fragment.clear(); };
    const auto finish = [&](Fragment& fragment, int step) {
      if (!has_rows) return;
      const int tile = item.tile_of(step);
      const int part = tile / tiles_per_block * Gemm::kCluster + Gemm::rank();
      rows.add(fragment, int64_t{tile} * Gemm::kBlockN, part);
      const bool ends_block = tile % tiles_per_block >= tiles_per_block - Gemm::kCluster;
      if (step + 1 == item.num_steps || ends_block) rows.store_part(part);
    };
    gemm.consume(item.num_steps, num_k_blocks, start, finish);
  }
}

template <class T>
void launch_forward_sweep_sm90(const ForwardSweep<T>& sweep, cuda::Stream stream) {
  using Gemm = LogitsGemmSm90<T>;
  const SweepStatistics& statistics = sweep.statistics;
  const bool ranks = statistics.top_keys != nullptr;
  const int scratch =
      ranks ? Gemm::kConsumers * 4 * static_cast<int>(sizeof(RankingScratch<typename Gemm::Fragment>)) : 0;
  const int64_t items = int64_t{ForwardItemSm90<T>::num_row_tiles(sweep)} * sweep.num_splits;
  const ForwardSweepSm90<T> params = {
      sweep, Gemm::template make_map<true>(sweep.e, statistics.active.padded, sweep.e_columns, sweep.e_columns),
      Gemm::template make_map<false>(sweep.c, statistics.vocab_size, sweep.hidden_size, sweep.stride_c_row)};
  cuda::launch<linear_logprobs_forward_sm90_kernel<T>>(
      Gemm::launch_config(items, scratch, stream, "linear_logprobs_forward_sm90"), params);
}

}  // namespace tokcore::cross_entropy
