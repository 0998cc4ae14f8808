// The forward from compute capability 8.0 on.
//
// Grid: a block for each tile of queries of each head; the tiles of a head follow one another, so that its keys and
// values stay in L2, with `causal` the longest first. A tile of 128 queries walks the union of the blocks of keys that
// its two halves of 64 keep: a warp belongs to one half and sits out what its half does not keep. Keys and values come
// in turn through a ring of slots.
#pragma once

#include "attention/attention_key_tiles.cuh"
#include "attention/attention_softmax.cuh"
#include "attention/attention_store.cuh"
#include "attention/block_sparse_attention_cuda_tasks.cuh"
#include "tokcore/cuda/row_tile.cuh"

namespace tokcore::attention {

// Of 16-bit elements a warp makes two strips of 16 queries, so that what it reads of keys and values serves both; rows
// of 512 bytes and more leave registers for one, and of 1024 bytes for the sums of half their columns: then two warps
// make the same scores. Shared memory stays within the 99 KB that every GPU from 8.0 on gives.
template <class T, int kHeadDim_>
struct ForwardTileSm80 {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kStrips = sizeof(T) == 2 && kRowBytes <= 256 ? 2 : 1;
  static constexpr int kRows = kRowBytes <= 512 ? 128 : 64;
  static constexpr int kParts = kRowBytes <= 512 ? 1 : 2;
  static constexpr int kPartColumns = kHeadDim / kParts;
  static constexpr int kWarpsOfPart = kRows / (16 * kStrips);
  static constexpr int kThreads = 32 * kWarpsOfPart * kParts;
  static constexpr int kHalves = kRows / kHalfRows;
  static constexpr int kKeys = kRowBytes <= 128 ? 64 : kRowBytes <= 512 ? 32 : 16;
  static constexpr int kSlots = kRowBytes <= 256 ? 3 : 2;
  static constexpr int kBlocksPerMultiprocessor = kStrips;

  using Queries = cuda::RowTile<T, kRows, kHeadDim>;
  using Keys = cuda::RowTile<T, kKeys, kHeadDim>;
  using Scores = cuda::StripFragment<kStrips, kKeys>;
  using Sums = cuda::StripFragment<kStrips, kPartColumns>;
  static constexpr int kSharedBytes = Queries::kBytes + kSlots * Keys::kBytes;
  static_assert(kSharedBytes <= 99 * 1024);
};

template <class T, int kHeadDim>
__global__ void __launch_bounds__(ForwardTileSm80<T, kHeadDim>::kThreads,
                                  ForwardTileSm80<T, kHeadDim>::kBlocksPerMultiprocessor)
    block_sparse_attention_forward_sm80_kernel(const __grid_constant__ ForwardTask task) {
  using Tile = ForwardTileSm80<T, kHeadDim>;
  using Scores = typename Tile::Scores;
  using Sums = typename Tile::Sums;
  TOKCORE_SHARED_MEMORY(shared);
  const BlockSparseAttentionForwardParams& params = task.params;
  const AttentionShape& shape = params.shape;
  const int query_length = static_cast<int>(shape.query_length), key_length = static_cast<int>(shape.key_length);

  const QueryRows<Tile::kRows> tile(params, static_cast<int>(blockIdx.x));
  const int first_row = tile.first_row, num_heads = static_cast<int>(shape.num_heads);
  const int batch = tile.index / num_heads, head = tile.index - batch * num_heads;
  const int kv_head = head / (static_cast<int>(shape.num_heads) / static_cast<int>(shape.num_kv_heads));
  const T* q = rows_of_head<T>(params.q, batch, head) + first_row * params.q.stride_row;
  const T* k = rows_of_head<T>(params.k, batch, kv_head);
  const T* v = rows_of_head<T>(params.v, batch, kv_head);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp % Tile::kWarpsOfPart * Scores::kRows;
  const int first_column = warp / Tile::kWarpsOfPart * Tile::kPartColumns;
  const int half = Tile::kHalves == 1 ? 0 : warp_row / kHalfRows;
  const int causal_end = first_row + warp_row + 1 + key_length - query_length;  // of the warp's first row

  unsigned char* queries = shared;
  unsigned char* slots = shared + Tile::Queries::kBytes;
  // Of two slots keys have the first and values the second; three are taken in turn.
  constexpr int kKeySlot = 0, kValueSlot = 1;
  int fill_slot = 0, use_slot = 0;
  const auto slot_of = [&](int& next, int slot) {
    if constexpr (Tile::kSlots == 3) {
      slot = next;
      next = slot == 2 ? 0 : slot + 1;
    }
    return slots + slot * Tile::Keys::kBytes;
  };
  const auto fill = [&](int slot, const T* rows, int64_t stride, const KeyTile& at) {
    unsigned char* to = slot_of(fill_slot, slot);
    if (at.exists()) {
      cuda::fill_rows<typename Tile::Keys, Tile::kThreads>(to, threadIdx.x, rows + at.first * stride, stride,
                                                           key_length - at.first, task.columns);
    }
    cute::cp_async_fence();
  };
  // The slot that arrived, once all threads are done with the one before it.
  const auto arrive = [&](int slot) -> const unsigned char* {
    cute::cp_async_wait<Tile::kSlots - 2>();
    __syncthreads();
    return slot_of(use_slot, slot);
  };

  KeyTileWalk<Tile::kHalves, Tile::kKeys> walk(params, batch, head, first_row,
                                               static_cast<int>(min(first_row + Tile::kRows, query_length)) - 1);
  walk.advance();
  KeyTile current = walk.tile();
  if (current.exists()) {
    cuda::fill_rows<typename Tile::Queries, Tile::kThreads>(queries, threadIdx.x, q, params.q.stride_row,
                                                            query_length - first_row, task.columns);
  }
  fill(kKeySlot, k, params.k.stride_row, current);
  if constexpr (Tile::kSlots == 3) fill(kValueSlot, v, params.v.stride_row, current);

  Sums sums;
  sums.clear();
  RowSoftmax<Scores, sizeof(T) == 4> softmax(task.scale);
  while (current.exists()) {
    // With causal, a tile may lie after all rows of this warp though others see it.
    const bool takes_part = current.is_kept_by(half) && first_row + warp_row < query_length &&
                            (!params.causal || current.first < causal_end + Scores::kRows - 1);
    Scores scores;

    // Scores, while what comes next is loaded.
    const unsigned char* keys = arrive(kKeySlot);
    if constexpr (Tile::kSlots == 3) {
      walk.advance();
      fill(kKeySlot, k, params.k.stride_row, walk.tile());
    } else {
      fill(kValueSlot, v, params.v.stride_row, current);
    }
    if (takes_part) {
      scores.clear();
      cuda::multiply_rows<typename Tile::Queries, typename Tile::Keys>(scores, queries, warp_row, keys, lane);
    }

    // Weights and the sum of values.
    const unsigned char* values = arrive(kValueSlot);
    if constexpr (Tile::kSlots == 3) {
      fill(kValueSlot, v, params.v.stride_row, walk.tile());
    } else {
      walk.advance();
      fill(kKeySlot, k, params.k.stride_row, walk.tile());
    }
    if (takes_part) {
      const int end = current.first + Tile::kKeys;
      if (end > key_length || (params.causal && end > causal_end)) {
        cut_scores(scores, current.first, key_length, params.causal, causal_end, lane);
      }
      softmax.add(scores, [&](int slot, float factor) {
#pragma unroll
        for (int group = 0; group < Sums::kGroups; ++group) {
          sums.at(slot, group, 0) *= factor;
          sums.at(slot, group, 1) *= factor;
        }
      });
      cuda::multiply_columns<typename Tile::Keys>(sums, scores, values, first_column, key_length - current.first, lane);
    }
    current = walk.tile();
  }
  cute::cp_async_wait<0>();

  // Results. Which queries they are of was not kept in registers.
  const QueryRows<Tile::kRows> written(params, cuda::ptx::forget(static_cast<int>(blockIdx.x)));
  const int num_rows = query_length - written.first_row - warp_row;
  if (num_rows <= 0) return;
  const int64_t row = static_cast<int64_t>(written.index) * query_length + written.first_row + warp_row;
  store_results<T>(sums, softmax, params, row, num_rows, first_column, lane);
}

template <class T, int kHeadDim>
void launch_forward_sm80(const ForwardTask& task, cuda::Stream stream) {
  using Tile = ForwardTileSm80<T, kHeadDim>;
  const AttentionShape& shape = task.params.shape;
  const int64_t blocks = shape.batch * shape.num_heads * ceil_div(shape.query_length, Tile::kRows);
  cuda::LaunchConfig config =
      cuda::launch_over(blocks, 1, Tile::kThreads, stream, "block_sparse_attention_forward_sm80");
  config.shared_bytes = Tile::kSharedBytes;
  cuda::launch<block_sparse_attention_forward_sm80_kernel<T, kHeadDim>>(config, task);
}

}  // namespace tokcore::attention
