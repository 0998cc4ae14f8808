// Block statistics of attention weights from compute capability 8.0 on.
//
// Grid: as many blocks as run at a time; each takes tiles of 128 queries of a head in turn. One sweep over the keys
// leaves of each query and block of keys the greatest score and the sum of exponentials relative to it, in memory of
// the block's own, and of each query the same of all keys in shared memory. From these the statistics of the tile's
// blocks are made. Only the count needs a second sweep, since its threshold needs the query's total. No other block of
// the grid adds to a block of the result: no atomics, and one order of every sum.
#pragma once

#include "attention/attention_block_scores_reduce.cuh"
#include "attention/attention_softmax.cuh"
#include "tokcore/cuda/row_tile.cuh"

namespace tokcore::attention {

// Of 16-bit elements a warp makes two strips of 16 queries, so that what it reads of keys serves both. Rows of 1024
// bytes leave shared memory for 64 queries, which pass over the keys one after the other. Shared memory stays within
// the 99 KB that every GPU from 8.0 on gives.
template <class T, int kHeadDim_>
struct BlockScoresTileSm80 {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kStrips = sizeof(T) == 2 && kRowBytes <= 256 ? 2 : 1;
  static constexpr int kRows = kRowBytes <= 512 ? 128 : 64;
  static constexpr int kKeys = kRowBytes <= 256 ? 64 : kRowBytes <= 512 ? 32 : 16;
  static constexpr int kThreads = 32 * kRows / (16 * kStrips);
  static constexpr int kBlocksPerMultiprocessor = kStrips;

  using Queries = cuda::RowTile<T, kRows, kHeadDim>;
  using Keys = cuda::RowTile<T, kKeys, kHeadDim>;
  using Scores = cuda::StripFragment<kStrips, kKeys>;
  static constexpr int kTotalsAt = Queries::kBytes + 2 * Keys::kBytes;
  static constexpr int kSharedBytes = kTotalsAt + kScoredQueries * static_cast<int>(sizeof(RowTotal));
  static_assert(kSharedBytes <= 99 * 1024 && kScoredQueries % kRows == 0);
};

// The queries of a tile that are in shared memory at a time, and all keys that the tile sees.
template <class T>
struct QueryPanel {
  const T* q;              // its first row
  const T* k;              // [N, D]
  BlockPartial* partials;  // of its first query: [blocks of keys, kScoredQueries]
  RowTotal* totals;        // of its first query
  int first_row;
  int end;  // no query of the tile sees this key
};

// First sweep: of each block of keys the greatest score and the sum of exponentials, and both of all keys so far.
template <class Scores, bool kExact>
class SoftmaxOfBlocks {
 public:
  static constexpr int kSlots = Scores::kSlots;

  TOKCORE_DEVICE explicit SoftmaxOfBlocks(const ScoreScale& scale) : factor_(scale.factor), softmax_(scale) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      highest_[slot] = -scale.limit;
      total_[slot] = 0.0f;
    }
  }

  TOKCORE_DEVICE void add(Scores& scores) {
    softmax_.add(scores, [](int, float) {});
  }
  // Ends a block of keys: store(slot, partial) of each slot.
  template <class Store>
  TOKCORE_DEVICE void end_block(Store&& store) {
    softmax_.finish();
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const float maximum = softmax_.maximum(slot), sum = softmax_.sum(slot);
      const float raised = fmaxf(highest_[slot], maximum);
      total_[slot] = total_[slot] * cuda::exp2_approx((highest_[slot] - raised) * factor_) +
                     sum * cuda::exp2_approx((maximum - raised) * factor_);
      highest_[slot] = raised;
      store(slot, BlockPartial{maximum, sum});
    }
    softmax_.restart();
  }
  TOKCORE_DEVICE RowTotal total(int slot, BlockStatistic statistic) const {
    return RowTotal::of(highest_[slot], total_[slot], statistic);
  }

 private:
  float factor_;
  RowSoftmax<Scores, kExact> softmax_;  // of the block of keys
  float highest_[kSlots];
  float total_[kSlots];  // of 2^(factor (score - highest))
};

// Second sweep: how many scores of each block exceed the query's limit.
template <class Scores>
class CountOfBlocks {
 public:
  static constexpr int kSlots = Scores::kSlots;

  // limit_of(slot) is the score that those that count exceed.
  template <class LimitOf>
  TOKCORE_DEVICE explicit CountOfBlocks(LimitOf&& limit_of) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      limit_[slot] = limit_of(slot);
      count_[slot] = 0;
    }
  }

  TOKCORE_DEVICE void add(Scores& scores) {
    scores.for_each([&](float& score, int slot, int, int) { count_[slot] += score > limit_[slot] ? 1 : 0; });
  }
  template <class Store>
  TOKCORE_DEVICE void end_block(Store&& store) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      store(slot, BlockPartial{0.0f, cuda::quad_sum(static_cast<float>(count_[slot]))});
      count_[slot] = 0;
    }
  }

 private:
  float limit_[kSlots];
  int count_[kSlots];
};

// Passes over all keys of a panel, tile by tile: statistic.add(scores), and at the end of each block of keys what it
// holds of the block goes to the panel's partials. Every thread of the block has to come here, with shared memory that
// nobody uses any more.
template <class Tile, class T, class Statistic>
TOKCORE_DEVICE void sweep_keys(const BlockScoresTask& task, const QueryPanel<T>& panel, unsigned char* shared,
                               Statistic& statistic) {
  using Scores = typename Tile::Scores;
  const AttentionBlockScoresParams& params = task.params;
  const int query_length = static_cast<int>(params.shape.query_length);
  const int key_length = static_cast<int>(params.shape.key_length);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Scores::kRows;
  const int num_rows = query_length - panel.first_row - warp_row;                     // of the warp
  const int causal_end = panel.first_row + warp_row + 1 + key_length - query_length;  // of the warp's first row
  const int block_end = static_cast<int>(params.block_n) - 1;
  const int shift_n = log2_of_block(params.block_n);

  unsigned char* slots = shared + Tile::Queries::kBytes;
  const auto fill = [&](int slot, int first_key) {
    if (first_key < panel.end) {
      cuda::fill_rows<typename Tile::Keys, Tile::kThreads>(slots + slot * Tile::Keys::kBytes, threadIdx.x,
                                                           panel.k + first_key * params.k.stride_row,
                                                           params.k.stride_row, key_length - first_key, task.columns);
    }
    cute::cp_async_fence();
  };
  if (panel.end > 0) {
    cuda::fill_rows<typename Tile::Queries, Tile::kThreads>(shared, threadIdx.x, panel.q, params.q.stride_row,
                                                            query_length - panel.first_row, task.columns);
  }
  fill(0, 0);
  int slot = 0;
  for (int first_key = 0; first_key < panel.end; first_key += Tile::kKeys) {
    // The tile that arrived, while the next one is loaded.
    cute::cp_async_wait<0>();
    __syncthreads();
    fill(slot ^ 1, first_key + Tile::kKeys);

    // Scores. With causal, a tile may lie after all rows of this warp though others see it.
    const int last_key = first_key + Tile::kKeys - 1;
    if (num_rows > 0 && (!params.causal || first_key < causal_end + Scores::kRows - 1)) {
      Scores scores;
      scores.clear();
      cuda::multiply_rows<typename Tile::Queries, typename Tile::Keys>(scores, shared, warp_row,
                                                                       slots + slot * Tile::Keys::kBytes, lane);
      if (last_key >= key_length || (params.causal && last_key >= causal_end)) {
        cut_scores(scores, first_key, key_length, params.causal, causal_end, lane);
      }
      statistic.add(scores);
    }
    slot ^= 1;

    // The end of a block. Queries that do not exist have seen zeros.
    if ((last_key & block_end) != block_end && last_key < panel.end - 1) continue;
    BlockPartial* to = panel.partials + int64_t{first_key >> shift_n} * kScoredQueries + warp_row;
    statistic.end_block([&](int of, const BlockPartial& partial) {
      const int row = Scores::row_of(of, lane);
      if (lane % 4 == 0) to[row] = row < num_rows ? partial : BlockPartial{-task.scale.limit, 0.0f};
    });
  }
  cute::cp_async_wait<0>();
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(BlockScoresTileSm80<T, kHeadDim>::kThreads,
                                  BlockScoresTileSm80<T, kHeadDim>::kBlocksPerMultiprocessor)
    attention_block_scores_sm80_kernel(const __grid_constant__ BlockScoresTask task) {
  using Tile = BlockScoresTileSm80<T, kHeadDim>;
  using Scores = typename Tile::Scores;
  TOKCORE_SHARED_MEMORY(shared);
  RowTotal* totals = reinterpret_cast<RowTotal*>(shared + Tile::kTotalsAt);  // [kScoredQueries]
  const AttentionBlockScoresParams& params = task.params;
  const AttentionShape& shape = params.shape;
  const int query_length = static_cast<int>(shape.query_length), key_length = static_cast<int>(shape.key_length);
  const int num_heads = static_cast<int>(shape.num_heads);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Scores::kRows;
  const int num_columns = static_cast<int>(ceil_div(shape.key_length, params.block_n));
  const int64_t num_rows = ceil_div(shape.query_length, params.block_m);
  BlockPartial* partials = task.partials + int64_t{blockIdx.x} * num_columns * kScoredQueries;

  // The tiles of a head follow one another, so that its keys stay in L2. With causal they grow: every other round goes
  // backwards, so that a block's long tiles and its short ones make up for each other.
  const int tiles_of_head = (query_length + kScoredQueries - 1) / kScoredQueries;
  const int num_blocks = task.num_blocks;
  int place = static_cast<int>(blockIdx.x);
  for (int64_t round = 0; round + place < task.num_tiles; round += num_blocks, place = num_blocks - 1 - place) {
    const int index = static_cast<int>(round + place) / tiles_of_head;
    const int tile = static_cast<int>(round + place) - index * tiles_of_head;
    const int first_row = tile * kScoredQueries;
    const int batch = index / num_heads, head = index - batch * num_heads;
    int end = key_length;
    if (params.causal) {
      const int last_row = min(first_row + kScoredQueries, query_length) - 1;
      end = max(min(end, last_row + 1 + key_length - query_length), 0);
    }
    const auto panel_of = [&](int first) {
      return QueryPanel<T>{rows_of_head<T>(params.q, batch, head) + (first_row + first) * params.q.stride_row,
                           rows_of_head<T>(params.k, batch, head / (num_heads / static_cast<int>(shape.num_kv_heads))),
                           partials + first,
                           totals + first,
                           first_row + first,
                           end};
    };

    // What each query's blocks hold, and all of its keys.
    for (int first = 0; first < kScoredQueries; first += Tile::kRows) {
      SoftmaxOfBlocks<Scores, sizeof(T) == 4> statistic(task.scale);
      const QueryPanel<T> panel = panel_of(first);
      sweep_keys<Tile>(task, panel, shared, statistic);
#pragma unroll
      for (int slot = 0; slot < Scores::kSlots; ++slot) {
        const int row = warp_row + Scores::row_of(slot, lane);
        const bool exists = panel.first_row + row < query_length;
        if (lane % 4 == 0) {
          panel.totals[row] = exists ? statistic.total(slot, params.statistic)
                                     : RowTotal::of(-task.scale.limit, 0.0f, params.statistic);
        }
      }
      __syncthreads();
    }

    // How many weights exceed the threshold.
    if (params.statistic == BlockStatistic::kCountAbove) {
      for (int first = 0; first < kScoredQueries; first += Tile::kRows) {
        const QueryPanel<T> panel = panel_of(first);
        CountOfBlocks<Scores> statistic([&](int slot) {
          return panel.totals[warp_row + Scores::row_of(slot, lane)].limit(params.threshold, task.scale.factor);
        });
        sweep_keys<Tile>(task, panel, shared, statistic);
        __syncthreads();
      }
    }

    // The statistics of the tile's blocks.
    const int64_t row = first_row >> log2_of_block(params.block_m);
    BlockReduction(task, totals, partials, first_row, end)
        .template run<Tile::kThreads>(params.scores + (index * num_rows + row) * num_columns, num_columns);
    __syncthreads();
  }
}

template <class T, int kHeadDim>
void launch_block_scores_sm80(const BlockScoresTask& task, cuda::Stream stream) {
  using Tile = BlockScoresTileSm80<T, kHeadDim>;
  cuda::LaunchConfig config =
      cuda::launch_over(task.num_blocks, 1, Tile::kThreads, stream, "attention_block_scores_sm80");
  config.shared_bytes = Tile::kSharedBytes;
  cuda::launch<attention_block_scores_sm80_kernel<T, kHeadDim>>(config, task);
}

}  // namespace tokcore::attention
