// After the sweep: statistics of a row from those of its parts, the greatest logits from the lists, and which tiles the
// filter keeps. Everything is merged in vocabulary order.
#pragma once

#include "cross_entropy/linear_logprobs_statistics.cuh"
#include "tokcore/cuda/launch.h"

namespace tokcore::cross_entropy {

struct MergeStatistics {
  SweepStatistics sweep;
  int64_t num_parts;
  float* lse;        // [T]
  float* entropy;    // [T] or null
  float* logit_sum;  // [T] or null
};

inline constexpr unsigned kMergeThreads = 128;
inline constexpr unsigned kMergeRows = 32;   // of a block of merge_statistics_kernel
inline constexpr unsigned kMergeGroups = 8;  // stretches of parts that a block merges side by side

// A stretch of parts, merged.
struct MergedParts {
  SoftmaxState state;
  float logit_sum = 0.0f;
};

// Grid: a block for each 32 rows. A thread merges a stretch of the parts of a row, then one merges the stretches.
template <int = 0>
__global__ void merge_statistics_kernel(const MergeStatistics params) {
  TOKCORE_SHARED_MEMORY(shared);
  auto* stretches = reinterpret_cast<MergedParts*>(shared);  // [kMergeGroups, kMergeRows]
  const SweepStatistics& sweep = params.sweep;
  const unsigned lane = threadIdx.x % kMergeRows, group = threadIdx.x / kMergeRows;
  const int64_t row = int64_t{blockIdx.x} * kMergeRows + lane;
  const bool present = row < sweep.active.count_from(sweep.first_active, sweep.num_rows);

  MergedParts merged;
  const int64_t end = present ? (group + 1) * params.num_parts / kMergeGroups : 0;
#pragma unroll 4
  for (int64_t part = group * params.num_parts / kMergeGroups; part < end; ++part) {
    const int64_t at = part * sweep.padded_rows + row;
    merged.state.merge({sweep.maximum[at], sweep.sum[at], params.entropy != nullptr ? sweep.weighted[at] : 0.0f});
    if (params.logit_sum != nullptr) merged.logit_sum += sweep.logit_sum[at];
  }
  stretches[threadIdx.x] = merged;
  __syncthreads();
  if (group != 0 || !present) return;

  for (unsigned i = 1; i < kMergeGroups; ++i) {
    const MergedParts& next = stretches[i * kMergeRows + lane];
    merged.state.merge(next.state);
    merged.logit_sum += next.logit_sum;
  }
  const int64_t position = sweep.active.positions[sweep.first_active + row];
  params.lse[position] = merged.state.log_sum_exp();
  if (params.entropy != nullptr) params.entropy[position] = merged.state.entropy();
  if (params.logit_sum != nullptr) params.logit_sum[position] = merged.logit_sum;
}

struct MergeLists {
  SweepStatistics sweep;
  int64_t num_lists;
  float* values;     // [T, topk]
  int64_t* indices;  // [T, topk]
};

// Grid: a warp for each row.
template <int = 0>
__global__ void merge_lists_kernel(const MergeLists params) {
  const SweepStatistics& sweep = params.sweep;
  const int64_t row = (int64_t{blockIdx.x} * kMergeThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= sweep.active.count_from(sweep.first_active, sweep.num_rows)) return;
  const auto list_at = [&](int64_t list) { return sweep.top_keys + (list * sweep.padded_rows + row) * sweep.topk; };
  RankKey* best = list_at(0);
  for (int64_t list = 1; list < params.num_lists; ++list) {
    const RankKey* others = list_at(list);
    for (int64_t i = 0; i < sweep.topk && others[i] > best[sweep.topk - 1]; ++i) {
      cuda::insert_ranked(best, sweep.topk, others[i], lane);
    }
  }
  const int64_t to = sweep.active.positions[sweep.first_active + row] * sweep.topk;
  for (int64_t i = lane; i < sweep.topk; i += 32) {
    params.values[to + i] = cuda::value_of(best[i]);
    params.indices[to + i] = cuda::index_of(best[i]);
  }
}

struct KeepTiles {
  SweepStatistics sweep;
  const float* lse;  // [T]
  float filter_log_eps;
  uint32_t* kept;  // [ceil(V/32), words]
  int64_t words;
};

// Grid: a warp for each word. A tile survives unless its greatest logit, rounded up, is below the threshold: a NaN
// survives.
template <int = 0>
__global__ void keep_tiles_kernel(const KeepTiles params) {
  const SweepStatistics& sweep = params.sweep;
  const int64_t item = (int64_t{blockIdx.x} * kMergeThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (item >= ceil_div(sweep.vocab_size, kFilterTile) * params.words) return;
  const int64_t tile = item / params.words;
  const int64_t active = item % params.words * 32 + lane;
  bool keeps = false;
  if (active < *sweep.active.count) {
    const uint32_t bits = sweep.tile_maxima[tile * sweep.padded_rows + active];
    const float log_p = __uint_as_float(bits << 16) - params.lse[sweep.active.positions[active]];
    keeps = !(log_p < params.filter_log_eps);
  }
  const uint32_t word = __ballot_sync(cuda::kAllLanes, keeps);
  if (lane == 0) params.kept[item] = word;
}

struct KeepIndices {
  ActivePositions active;
  const int64_t* ranked;  // [T, num_ranked] to be kept beside active.indices; or null
  int64_t num_ranked;
  int64_t first_tile;  // the filter tiles that `kept` holds
  int64_t num_tiles;
  uint32_t* kept;  // [num_tiles, words]
  int64_t words;
};

// Grid: a warp for each column of words, which nobody else writes. The tiles of chosen logits are always kept.
template <int = 0>
__global__ void keep_indices_kernel(const KeepIndices params) {
  const int64_t word = (int64_t{blockIdx.x} * kMergeThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (word >= params.words) return;
  const int64_t active = word * 32 + lane;
  const bool present = active < *params.active.count;
  const auto keep = [&](int64_t index) {
    const int64_t tile = index / kFilterTile - params.first_tile;
    const bool inside = index >= 0 && tile >= 0 && tile < params.num_tiles;
    const unsigned lanes = __match_any_sync(cuda::kAllLanes, inside ? static_cast<int>(tile) : -1);
    if (inside && (lanes & ((1u << lane) - 1)) == 0) params.kept[tile * params.words + word] |= lanes;
    __syncwarp();
  };
  for (int64_t k = 0; k < params.active.num_indices; ++k) {
    keep(present ? params.active.indices[active * params.active.num_indices + k] : -1);
  }
  for (int64_t k = 0; k < params.num_ranked; ++k) {
    keep(present ? params.ranked[params.active.positions[active] * params.num_ranked + k] : -1);
  }
}

}  // namespace tokcore::cross_entropy
