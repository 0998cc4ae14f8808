// The filtered backward: which active positions a tile of 128 vocabulary rows still works on, and grad_e from what
// little is left of dz.
#pragma once

#include "cross_entropy/linear_logprobs_sweeps_cuda.cuh"
#include "tokcore/cuda/launch.h"

namespace tokcore::cross_entropy {

inline constexpr unsigned kSurvivorThreads = 256;
inline constexpr int kFilterTilesPerGradientTile = static_cast<int>(kGradientTile / kFilterTile);

// Ranks things among those found by lower threads of the block and in earlier rounds.
class BlockRank {
 public:
  static constexpr int kSharedBytes = kSurvivorThreads / 32 * static_cast<int>(sizeof(int));
  TOKCORE_DEVICE explicit BlockRank(unsigned char* shared) : warp_totals_(reinterpret_cast<int*>(shared)) {}

  // How many were found before this thread's `count`. All threads of the block call it.
  TOKCORE_DEVICE int operator()(int count) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int up_to = count;
    for (int distance = 1; distance < 32; distance *= 2) {
      const int lower = __shfl_up_sync(cuda::kAllLanes, up_to, distance);
      if (lane >= distance) up_to += lower;
    }
    if (lane == 31) warp_totals_[warp] = up_to;
    __syncthreads();
    int before = total_ + up_to - count;
    for (int i = 0; i < static_cast<int>(kSurvivorThreads) / 32; ++i) {
      if (i < warp) before += warp_totals_[i];
      total_ += warp_totals_[i];
    }
    __syncthreads();  // the totals are read: the next call may write them
    return before;
  }
  TOKCORE_DEVICE int total() const { return total_; }

 private:
  int* warp_totals_;
  int total_ = 0;
};

struct CopyWords {
  const uint32_t* from;
  uint32_t* to;
  int64_t count;
};

// Grid: a thread for each word.
template <int = 0>
__global__ void copy_words_kernel(const CopyWords params) {
  const int64_t i = int64_t{blockIdx.x} * kSurvivorThreads + threadIdx.x;
  if (i < params.count) params.to[i] = params.from[i];
}

struct ListSurvivors {
  const uint32_t* kept;  // [filter_tiles, words] of the chunk
  int64_t filter_tiles;
  int64_t words;
  int64_t padded;  // T
  int32_t* rows;   // the arrays of Survivors
  int32_t* counts;
  uint32_t* bits;
  int32_t* before;
};

// Grid: a block for each tile of 128 vocabulary rows. A position survives if any of the four filter tiles keeps it.
template <int = 0>
__global__ void list_survivors_kernel(const ListSurvivors params) {
  TOKCORE_SHARED_MEMORY(shared);
  BlockRank rank(shared);
  const int64_t tile = blockIdx.x;
  for (int64_t first = 0; first < params.words; first += kSurvivorThreads) {
    const int64_t word = first + threadIdx.x;
    uint32_t bits = 0;
    for (int i = 0; i < kFilterTilesPerGradientTile && word < params.words; ++i) {
      const int64_t filter_tile = tile * kFilterTilesPerGradientTile + i;
      if (filter_tile < params.filter_tiles) bits |= params.kept[filter_tile * params.words + word];
    }
    const int before = rank(__popc(bits));
    if (word >= params.words) continue;
    params.bits[tile * params.words + word] = bits;
    params.before[tile * params.words + word] = before;
    int32_t* rows = params.rows + tile * params.padded + before;
    for (uint32_t left = bits; left != 0; left &= left - 1) {
      *rows++ = static_cast<int32_t>(word * 32 + __ffs(static_cast<int>(left)) - 1);
    }
  }
  if (threadIdx.x == 0) params.counts[tile] = rank.total();
}

struct ChooseDense {
  ActivePositions active;
  Survivors survivors;
  const int32_t* nonzeros;  // [tiles, nonzeros_stride]
  int64_t nonzeros_stride;
  int64_t rows_of_part;
  int64_t parts_of_rows;  // side by side
  int64_t num_tiles;
  int32_t* is_dense;    // [num_tiles]
  int32_t* tiles;       // [num_tiles] the dense ones, ascending
  int32_t* num_listed;  // [1]
};

// One block. Multiplying a whole tile for a position costs as much as reading one row of c for it: a tile with more
// nonzeros than there are positions is dense.
template <int = 0>
__global__ void choose_dense_kernel(const ChooseDense params) {
  TOKCORE_SHARED_MEMORY(shared);
  BlockRank rank(shared);
  for (int64_t first = 0; first < params.num_tiles; first += kSurvivorThreads) {
    const int64_t tile = first + threadIdx.x;
    bool dense = false;
    if (tile < params.num_tiles) {
      const int64_t parts = ceil_div(params.survivors.counts[tile], params.rows_of_part) * params.parts_of_rows;
      int64_t nonzeros = 0;
      for (int64_t i = 0; i < parts; ++i) nonzeros += params.nonzeros[tile * params.nonzeros_stride + i];
      dense = nonzeros > *params.active.count;
    }
    const int before = rank(dense ? 1 : 0);
    if (tile >= params.num_tiles) continue;
    params.is_dense[tile] = dense ? 1 : 0;
    if (dense) params.tiles[before] = static_cast<int32_t>(tile);
  }
  if (threadIdx.x == 0) *params.num_listed = rank.total();
}

template <class T>
struct SparseHiddenProduct {
  ActivePositions active;
  Survivors survivors;
  GradientTiles<T> dz;
  const T* c;  // [V, C]
  int64_t hidden_size;
  int64_t stride_c_row;
  const int32_t* is_dense;  // [num_tiles] 1: has been multiplied as a whole
  float* sums;              // [padded T, sums_columns]
  int64_t sums_columns;
  int64_t first_vocab_row;
  int64_t num_tiles;
};

inline constexpr int kSparseColumnsOfLane = 8;
inline constexpr int64_t kSparseColumns = 32 * kSparseColumnsOfLane;

// Adds factor times the columns of a lane.
template <bool kAligned, class T>
TOKCORE_DEVICE void add_scaled(float factor, const T* row, int64_t count, float (&sums)[kSparseColumnsOfLane]) {
  alignas(16) T values[kSparseColumnsOfLane];
  if constexpr (kAligned) {
    constexpr int kElements = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < kSparseColumnsOfLane; i += kElements) {
      const bool inside = i < count;
      *reinterpret_cast<uint4*>(values + i) = inside ? *reinterpret_cast<const uint4*>(row + i) : uint4{};
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSparseColumnsOfLane; ++i) values[i] = i < count ? row[i] : T{};
  }
#pragma unroll
  for (int i = 0; i < kSparseColumnsOfLane; ++i) sums[i] = fmaf(factor, to_float(values[i]), sums[i]);
}

// Grid: a warp for each active position and each 256 columns of C, which walks the position's tiles in vocabulary
// order.
template <class T, bool kAligned>
__global__ void sparse_hidden_product_kernel(const SparseHiddenProduct<T> params) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t item = (int64_t{blockIdx.x} * kSurvivorThreads + threadIdx.x) / 32;
  const int64_t slabs = ceil_div(params.hidden_size, kSparseColumns);
  const int64_t active = item / slabs;
  if (active >= *params.active.count) return;
  const int64_t column = item % slabs * kSparseColumns + lane * kSparseColumnsOfLane;
  const int64_t columns = params.hidden_size - column;
  float* to = params.sums + active * params.sums_columns + column;
  const bool stores = columns > 0;
  float sums[kSparseColumnsOfLane];
#pragma unroll
  for (int i = 0; i < kSparseColumnsOfLane; ++i) sums[i] = stores ? to[i] : 0.0f;

  for (int64_t first = 0; first < params.num_tiles; first += 32) {
    const int64_t mine = first + lane;
    const bool is_sparse = mine < params.num_tiles && params.is_dense[mine] == 0;
    const int rank = is_sparse ? static_cast<int>(params.survivors.rank(mine, active)) : -1;
    for (unsigned tiles = __ballot_sync(cuda::kAllLanes, rank >= 0); tiles != 0; tiles &= tiles - 1) {
      const int from = __ffs(static_cast<int>(tiles)) - 1;
      const int64_t tile = first + from;
      const T* dz = params.dz.row(tile, __shfl_sync(cuda::kAllLanes, rank, from));
      const T* c = params.c + (params.first_vocab_row + tile * kGradientTile) * params.stride_c_row + column;
      for (int group = 0; group < kGradientTile; group += 32) {
        const float value = to_float(dz[group + lane]);
        for (unsigned left = __ballot_sync(cuda::kAllLanes, value != 0.0f); left != 0; left &= left - 1) {
          const int v = __ffs(static_cast<int>(left)) - 1;
          const float factor = __shfl_sync(cuda::kAllLanes, value, v);
          add_scaled<kAligned>(factor, c + (group + v) * params.stride_c_row, columns, sums);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kSparseColumnsOfLane; ++i) {
    if (stores) to[i] = sums[i];
  }
}

}  // namespace tokcore::cross_entropy
