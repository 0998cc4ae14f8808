// Before anything else: which positions are active, and what belongs to them side by side in memory.
#pragma once

#include "cross_entropy/linear_logits_cuda.cuh"
#include "tokcore/cuda/launch.h"

namespace tokcore::cross_entropy {

struct CompactPositions {
  const int64_t* indices;  // [T, K]
  int64_t num_positions;
  int64_t num_indices;
  int64_t shift;
  int64_t sequence;  // positions of one sequence
  bool ignores;
  int64_t ignore_index;
  int32_t* count;      // [1]
  int32_t* positions;  // [T]
  int32_t* active_of;  // [T] which active position it is, or -1; or null
};

// One block: lists the active positions in ascending order.
inline constexpr unsigned kCompactThreads = 512;
template <int = 0>
__global__ void compact_positions_kernel(const CompactPositions params) {
  TOKCORE_SHARED_MEMORY(shared);
  int* warp_counts = reinterpret_cast<int*>(shared);  // [warps]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  int found_before = 0;
  for (int64_t first = 0; first < params.num_positions; first += blockDim.x) {
    const int64_t position = first + threadIdx.x;
    bool is_active = position < params.num_positions;
    if (is_active && params.shift > 0) is_active = position % params.sequence >= params.shift;
    if (is_active && params.ignores) is_active = params.indices[position * params.num_indices] != params.ignore_index;
    const unsigned lanes = __ballot_sync(cuda::kAllLanes, is_active);
    if (lane == 0) warp_counts[warp] = __popc(lanes);
    __syncthreads();
    int rank = found_before + __popc(lanes & ((1u << lane) - 1));
    for (int i = 0; i < num_warps; ++i) {
      if (i < warp) rank += warp_counts[i];
      found_before += warp_counts[i];
    }
    __syncthreads();  // the counts are read: the next round may write them
    if (is_active) params.positions[rank] = static_cast<int32_t>(position);
    if (params.active_of != nullptr && position < params.num_positions) {
      params.active_of[position] = is_active ? rank : -1;
    }
  }
  if (threadIdx.x == 0) *params.count = found_before;
}

template <class T>
struct PackRows {
  ActivePositions active;
  const T* e;  // [T, C]
  int64_t stride_e_row;
  int64_t hidden_size;
  int64_t shift;
  T* packed;        // [padded T, columns], zeros past C and past the last active position
  int64_t columns;  // a multiple of 16 bytes
};

// Grid: a block for each row.
inline constexpr unsigned kPackThreads = 128;
template <class T>
__global__ void pack_rows_kernel(const PackRows<T> params) {
  constexpr int kChunk = 16 / sizeof(T);
  const int64_t active = blockIdx.x;
  const bool present = active < *params.active.count;
  const int64_t row = present ? params.active.positions[active] - params.shift : 0;
  for (int64_t column = int64_t{threadIdx.x} * kChunk; column < params.columns; column += kPackThreads * kChunk) {
    alignas(16) T chunk[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const bool inside = present && column + i < params.hidden_size;
      chunk[i] = inside ? params.e[row * params.stride_e_row + column + i] : T{};
    }
    *reinterpret_cast<uint4*>(params.packed + active * params.columns + column) = *reinterpret_cast<uint4*>(chunk);
  }
}

struct PackIndices {
  ActivePositions active;
  const int64_t* indices;  // [T, K]
  int64_t vocab_size;
  int32_t* packed;  // [padded T, K]
  float* gathered;  // [T, K] gets NaN where an index is out of range; or null
};

// Grid: a thread for each row and index.
inline constexpr unsigned kThreadsPerBlock = 256;
template <int = 0>
__global__ void pack_indices_kernel(const PackIndices params) {
  const int64_t item = int64_t{blockIdx.x} * kThreadsPerBlock + threadIdx.x;
  const int64_t num_indices = params.active.num_indices;
  if (item >= params.active.padded * num_indices) return;
  const int64_t active = item / num_indices;
  int32_t packed = -1;
  if (active < *params.active.count) {
    const int64_t at = params.active.positions[active] * num_indices + item % num_indices;
    const int64_t index = params.indices[at];
    if (index >= 0 && index < params.vocab_size) {
      packed = static_cast<int32_t>(index);
    } else if (params.gathered != nullptr) {
      params.gathered[at] = __uint_as_float(0x7fffffffu);
    }
  }
  params.packed[item] = packed;
}

}  // namespace tokcore::cross_entropy
