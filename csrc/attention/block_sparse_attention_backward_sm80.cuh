// The backward from compute capability 8.0 on: one sweep in which tiles of keys own their rows of grad_k and grad_v and
// walk the queries that see them, and one in which tiles of queries own grad_q and walk their keys. With A the owner's
// rows and W what it walks,
//
//   scores   = A1 W1^T        A1 = k (q), W1 = q (k)
//   slopes   = A2 W2^T        A2 = v (grad_out), W2 = grad_out (v): d loss / d weights
//   weights  = exp(scale scores - lse of the query)
//   d scores = weights (slopes - delta of the query), delta = sum(grad_out out) - grad_lse
//   sums1   += d scores W1    grad_k (grad_q) before the scale
//   sums2   += weights W2     grad_v; keys only
//
// Seven products in place of five, but every sum has one owner and one order: nothing is added by atomics.
#pragma once

#include "attention/attention_query_tiles.cuh"
#include "attention/attention_store.cuh"
#include "attention/block_sparse_attention_cuda_tasks.cuh"
#include "tokcore/cuda/math.cuh"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/cuda/row_tile.cuh"

namespace tokcore::attention {

// A warp owns 16 rows. The sums of as many columns as its registers hold are its own; wider rows are shared by several
// warps, each of which makes the scores and slopes again. Two stages of what is walked.
template <class T, int kHeadDim_, bool kOwnsKeys_>
struct BackwardTileSm80 {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kOwnsKeys = kOwnsKeys_;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kRows = kRowBytes <= 256 ? 64 : kRowBytes <= 512 ? 32 : 16;
  static constexpr int kWalked = kRowBytes <= 512 ? 32 : 16;
  static constexpr int kMostColumns = sizeof(T) == 4 ? 64 : 128;
  static constexpr int kParts = kHeadDim <= kMostColumns ? 1 : kHeadDim / kMostColumns;
  static constexpr int kPartColumns = kHeadDim / kParts;
  static constexpr int kWarpsOfPart = kRows / 16;
  static constexpr int kThreads = 32 * kWarpsOfPart * kParts;
  // Short rows: three blocks to a multiprocessor, which is 168 registers a thread.
  static constexpr int kStepsAtOnce = kHeadDim == 64 ? 2 : 4;

  using Owned = cuda::RowTile<T, kRows, kHeadDim>;
  using Walked = cuda::RowTile<T, kWalked, kHeadDim>;
  using Scores = cuda::StripFragment<1, kWalked>;
  using Sums = cuda::StripFragment<1, kPartColumns>;
  using Walk = std::conditional_t<kOwnsKeys, QueryTileWalk<kWalked>, KeyTileWalk<1, kWalked>>;
  static constexpr int kStageBytes = 2 * Walked::kBytes;
  static constexpr int kSharedBytes = 2 * Owned::kBytes + 2 * kStageBytes;
  static_assert(kSharedBytes <= 99 * 1024);
};

// Which rows a block of the grid owns, and the heads they belong to.
template <class Tile>
struct OwnedRows {
  int index;  // batch entry and head of the owners
  int batch;
  int head;
  int first;

  TOKCORE_DEVICE OwnedRows(const BackwardTask& task, int block) {
    const AttentionShape& shape = task.params.shape;
    const int length = static_cast<int>(Tile::kOwnsKeys ? shape.key_length : shape.query_length);
    const int heads = static_cast<int>(Tile::kOwnsKeys ? shape.num_kv_heads : shape.num_heads);
    const int num_tiles = (length + Tile::kRows - 1) / Tile::kRows;
    index = block / num_tiles;
    first = (block - index * num_tiles) * Tile::kRows;
    // With causal, the first keys and the last queries have the most to do.
    if (!Tile::kOwnsKeys && task.params.causal) first = (num_tiles - 1) * Tile::kRows - first;
    batch = index / heads;
    head = index - batch * heads;
  }
};

template <class T, int kHeadDim, bool kOwnsKeys>
__global__ void __launch_bounds__(BackwardTileSm80<T, kHeadDim, kOwnsKeys>::kThreads)
    block_sparse_attention_backward_sm80_kernel(const __grid_constant__ BackwardTask task) {
  using Tile = BackwardTileSm80<T, kHeadDim, kOwnsKeys>;
  using Scores = typename Tile::Scores;
  using Sums = typename Tile::Sums;
  TOKCORE_SHARED_MEMORY(shared);
  const BlockSparseAttentionBackwardParams& params = task.params;
  const AttentionShape& shape = params.shape;
  const int query_length = static_cast<int>(shape.query_length), key_length = static_cast<int>(shape.key_length);
  const int owned_length = kOwnsKeys ? key_length : query_length;
  const int walked_length = kOwnsKeys ? query_length : key_length;
  const int group_size = static_cast<int>(shape.num_heads) / static_cast<int>(shape.num_kv_heads);

  // Which rows.
  const OwnedRows<Tile> owned(task, static_cast<int>(blockIdx.x));
  const HeadsView& owned1 = kOwnsKeys ? params.k : params.q;
  const HeadsView& owned2 = kOwnsKeys ? params.v : params.grad_out;
  const HeadsView& walked1 = kOwnsKeys ? params.q : params.k;
  const HeadsView& walked2 = kOwnsKeys ? params.grad_out : params.v;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp % Tile::kWarpsOfPart * 16;
  const int first_column = warp / Tile::kWarpsOfPart * Tile::kPartColumns;
  const int first_row = owned.first + warp_row;

  const auto fill_owned = [&](unsigned char* to, const HeadsView& view) {
    cuda::fill_rows<typename Tile::Owned, Tile::kThreads>(
        to, threadIdx.x, rows_of_head<T>(view, owned.batch, owned.head) + owned.first * view.stride_row,
        view.stride_row, owned_length - owned.first, task.columns);
  };
  unsigned char* own1 = shared;
  unsigned char* own2 = own1 + Tile::Owned::kBytes;
  unsigned char* stages = own2 + Tile::Owned::kBytes;
  const auto fill_walked = [&](unsigned char* to, const HeadsView& view, int head, int first) {
    cuda::fill_rows<typename Tile::Walked, Tile::kThreads>(
        to, threadIdx.x, rows_of_head<T>(view, owned.batch, head) + first * view.stride_row, view.stride_row,
        walked_length - first, task.columns);
  };
  const auto fill_stage = [&](int stage, int head, int first) {
    unsigned char* to = stages + stage * Tile::kStageBytes;
    fill_walked(to, walked1, head, first);
    fill_walked(to + Tile::Walked::kBytes, walked2, head, first);
  };
  const auto head_of = [&](const typename Tile::Walk& walk) {
    return kOwnsKeys ? owned.head * group_size + walk.tile().member : owned.head / group_size;
  };
  typename Tile::Walk walk(params, owned.batch, kOwnsKeys ? owned.head * group_size : owned.head, owned.first,
                           static_cast<int>(min(owned.first + Tile::kRows, owned_length)) - 1);

  walk.advance();
  if (walk.tile().exists()) {
    fill_owned(own1, owned1);
    fill_owned(own2, owned2);
    fill_stage(0, head_of(walk), walk.tile().first);
  }
  cute::cp_async_fence();

  Sums sums1, sums2;
  sums1.clear();
  sums2.clear();
  int stage = 0;
  while (walk.tile().exists()) {
    const int first = walk.tile().first;
    const int query_head = kOwnsKeys ? head_of(walk) : owned.head;
    cute::cp_async_wait<0>();
    __syncthreads();
    walk.advance();
    if (walk.tile().exists()) fill_stage(stage ^ 1, head_of(walk), walk.tile().first);
    cute::cp_async_fence();
    const unsigned char* rows1 = stages + stage * Tile::kStageBytes;
    const unsigned char* rows2 = rows1 + Tile::Walked::kBytes;
    stage ^= 1;

    Scores weights, gradients;
    weights.clear();
    gradients.clear();
    cuda::multiply_rows<typename Tile::Owned, typename Tile::Walked, Tile::kStepsAtOnce>(weights, own1, warp_row, rows1,
                                                                                         lane);
    cuda::multiply_rows<typename Tile::Owned, typename Tile::Walked, Tile::kStepsAtOnce>(gradients, own2, warp_row,
                                                                                         rows2, lane);

    // Weights and gradients of scores. lse and delta are padded to whole tiles.
    const int64_t head_row = (static_cast<int64_t>(owned.batch) * shape.num_heads + query_head) * task.padded_rows;
    // What follows from the owner's row is made here again: kept over the loop it costs a register too many.
    const int own_row = cuda::ptx::forget(first_row);
    const int first_query = kOwnsKeys ? first : own_row, first_key = kOwnsKeys ? own_row : first;
    const int seen = key_length - query_length + first_query - first_key;  // key <= query + seen, both in the tile
    const float* lse = task.lse + head_row + first_query;
    const float* delta = task.delta + head_row + first_query;
    weights.for_each([&](float& weight, int slot, int group, int odd) {
      const int row = Scores::row_of(slot, lane), column = Scores::column_of(group, odd, lane);
      const int query = kOwnsKeys ? column : row, key = kOwnsKeys ? row : column;
      const float z = fmaf(weight, params.scale, -lse[query]);
      const bool counts = first_key + key < key_length && (!params.causal || key <= query + seen);
      float& gradient = gradients.at(slot, group, odd);
      weight = counts ? cuda::exp_approx(z) : 0.0f;
      gradient = counts ? weight * (gradient - delta[query]) : 0.0f;
    });

    cuda::multiply_columns<typename Tile::Walked>(sums1, gradients, rows1, first_column, walked_length - first, lane);
    if constexpr (kOwnsKeys) {
      cuda::multiply_columns<typename Tile::Walked>(sums2, weights, rows2, first_column, walked_length - first, lane);
    }
  }
  cute::cp_async_wait<0>();

  // Results.
  const OwnedRows<Tile> written(task, cuda::ptx::forget(static_cast<int>(blockIdx.x)));
  const int num_rows = owned_length - written.first - warp_row, head_dim = static_cast<int>(shape.head_dim);
  const int64_t at = (static_cast<int64_t>(written.index) * owned_length + written.first + warp_row) * head_dim;
  T* gradient1 = static_cast<T*>(kOwnsKeys ? params.grad_k : params.grad_q);
  T* gradient2 = static_cast<T*>(kOwnsKeys ? params.grad_v : nullptr);
  if (gradient1 != nullptr) {
    store_rows(sums1, gradient1 + at, num_rows, first_column, head_dim, lane, [&](int) { return params.scale; });
  }
  if (gradient2 != nullptr) {
    store_rows(sums2, gradient2 + at, num_rows, first_column, head_dim, lane, [](int) { return 1.0f; });
  }
}

// lse and delta of every query. delta is the diagonal of grad_out out^T, made by the product that makes the slopes: of
// a query with a single weight both are the same sum, and their difference is 0. A query without anything that counts
// gets lse = inf, so that its weights are 0.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(BackwardTileSm80<T, kHeadDim, false>::kThreads)
    block_sparse_attention_statistics_sm80_kernel(const __grid_constant__ BackwardTask task) {
  using Tile = BackwardTileSm80<T, kHeadDim, false>;
  using Rows = typename Tile::Owned;
  using Products = cuda::StripFragment<1, 16>;
  TOKCORE_SHARED_MEMORY(shared);
  const BlockSparseAttentionBackwardParams& params = task.params;
  const AttentionShape& shape = params.shape;
  const int query_length = static_cast<int>(shape.query_length), num_heads = static_cast<int>(shape.num_heads);
  const int num_tiles = static_cast<int>(task.padded_rows) / Tile::kRows;
  const int head = static_cast<int>(blockIdx.x) / num_tiles;
  const int first = (static_cast<int>(blockIdx.x) - head * num_tiles) * Tile::kRows;
  const auto fill = [&](unsigned char* to, const HeadsView& view) {
    const T* rows = rows_of_head<T>(view, head / num_heads, head % num_heads) + first * view.stride_row;
    cuda::fill_rows<Rows, Tile::kThreads>(to, threadIdx.x, rows, view.stride_row, query_length - first, task.columns);
  };
  fill(shared, params.grad_out);
  fill(shared + Rows::kBytes, params.out);
  cute::cp_async_fence();
  cute::cp_async_wait<0>();
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % 32, warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  if (warp_row >= Tile::kRows) return;
  Products products;
  products.clear();
  cuda::multiply_rows<Rows, Rows, 4>(products, shared, warp_row, shared + Rows::kBytes + warp_row * Rows::kRowBytes,
                                     lane);
  products.for_each([&](float& product, int slot, int group, int odd) {
    const int row = Products::row_of(slot, lane);
    if (row != Products::column_of(group, odd, lane)) return;
    const int query = first + warp_row + row;
    float lse = __uint_as_float(0x7f800000u), delta = 0.0f;
    if (query < query_length) {
      const int64_t at = static_cast<int64_t>(head) * query_length + query;
      if (params.lse[at] != -lse) lse = params.lse[at];
      delta = product - (params.grad_lse != nullptr ? params.grad_lse[at] : 0.0f);
    }
    task.lse[head * task.padded_rows + query] = lse;
    task.delta[head * task.padded_rows + query] = delta;
  });
}

template <class T, int kHeadDim>
void launch_statistics_sm80(const BackwardTask& task, cuda::Stream stream) {
  using Tile = BackwardTileSm80<T, kHeadDim, false>;
  static_assert(kPaddedQueries % Tile::kRows == 0);
  const int64_t blocks = task.params.shape.batch * task.params.shape.num_heads * (task.padded_rows / Tile::kRows);
  cuda::LaunchConfig config =
      cuda::launch_over(blocks, 1, Tile::kThreads, stream, "block_sparse_attention_statistics_sm80");
  config.shared_bytes = 2 * Tile::Owned::kBytes;
  cuda::launch<block_sparse_attention_statistics_sm80_kernel<T, kHeadDim>>(config, task);
}

template <class T, int kHeadDim, bool kOwnsKeys>
void launch_backward_sm80(const BackwardTask& task, cuda::Stream stream) {
  using Tile = BackwardTileSm80<T, kHeadDim, kOwnsKeys>;
  const AttentionShape& shape = task.params.shape;
  const int64_t tiles = ceil_div(kOwnsKeys ? shape.key_length : shape.query_length, Tile::kRows);
  const int64_t blocks = shape.batch * (kOwnsKeys ? shape.num_kv_heads : shape.num_heads) * tiles;
  cuda::LaunchConfig config =
      cuda::launch_over(blocks, 1, Tile::kThreads, stream, "block_sparse_attention_backward_sm80");
  config.shared_bytes = Tile::kSharedBytes;
  cuda::launch<block_sparse_attention_backward_sm80_kernel<T, kHeadDim, kOwnsKeys>>(config, task);
}

}  // namespace tokcore::attention
