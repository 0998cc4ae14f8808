// decode_attention: the splits, then their merge. Included once by a .cu file, and once by the tests for the execution
// on the CPU; the splits are compiled one by one.
#pragma once

#include "kv_cache/decode_split_cuda.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/online_softmax.cuh"
#include "tokcore/cuda/workspace.h"
#include "tokcore/kv_cache/decode_attention_cuda.h"

namespace tokcore::kv_cache {

template <class T, int kStrips>
void launch_decode_splits(const DecodeWork& work, cuda::Stream stream);

// ---- merge ---------------------------------------------------------------------------------------------------------

inline constexpr unsigned kMergeThreads = 128;
inline constexpr int kMostMerged = static_cast<int>(kNumSources * kMostSplits);

// Grid: a block for each query and head. Splits are added in order; what is as quantized is brought back once.
// Shared memory: weights [most_splits], a row of sums [D].
template <class T>
__global__ void decode_merge_kernel(const __grid_constant__ DecodeWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  const DecodeAttentionParams& p = work.p;
  const KvCacheParams& cache = p.cache;
  const int head_dim = static_cast<int>(cache.head_dim), thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  float* weights = reinterpret_cast<float*>(shared);
  float* row = weights + work.most_splits;
  const int64_t item = blockIdx.x / work.rows;
  const int r = static_cast<int>(blockIdx.x % work.rows);
  const int64_t b = item / cache.num_heads, head = item % cache.num_heads;
  const int64_t first = item * work.most_splits * work.rows + r, step = work.rows;

  // Every warp finds the same maximum.
  float maximum = -cuda::kFarthest;
  bool broken = false;
  for (int i = lane; i < work.most_splits; i += 32) {
    const float2 state = work.states[first + i * step];
    if (state.y != 0.0f) maximum = fmaxf(maximum, state.x);
    broken = broken || state.y != state.y;
  }
  for (int width = 1; width < 32; width *= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(cuda::kAllLanes, maximum, width));
  }
  broken = __any_sync(cuda::kAllLanes, broken) != 0;
  const float reference = cuda::SoftmaxState::reference(maximum);
  for (int i = thread; i < work.most_splits; i += static_cast<int>(kMergeThreads)) {
    const float2 state = work.states[first + i * step];
    weights[i] = state.y == 0.0f ? 0.0f : cuda::exp2_approx(cuda::SoftmaxState::reference(state.x) - reference);
  }
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < work.most_splits; ++i) {
    if (weights[i] != 0.0f) sum = fmaf(work.states[first + i * step].y, weights[i], sum);
  }

  bool has_codes = false;
  float plain[2] = {}, coded[2] = {};
  int begin = 0;
#pragma unroll
  for (int source = 0; source < kNumSources; ++source) {
    const int end = begin + static_cast<int>(work.splits.of_source[source]);
    const bool is_coded = source < kNumTiers && cache.tiers[source].keys.coded;
    has_codes = has_codes || (is_coded && end > begin);
    for (int i = begin; i < end; ++i) {
      if (weights[i] == 0.0f) continue;  // nothing was written
      const float* from = work.outputs + (first + i * step) * head_dim;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int channel = thread + j * static_cast<int>(kMergeThreads);
        if (channel >= head_dim) continue;
        const float sum_so_far = fmaf(from[channel], weights[i], is_coded ? coded[j] : plain[j]);
        if (is_coded) {
          coded[j] = sum_so_far;
        } else {
          plain[j] = sum_so_far;
        }
      }
    }
    begin = end;
  }
  if (has_codes && (cache.rotates || cache.v_channel_scale != nullptr)) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int channel = thread + j * static_cast<int>(kMergeThreads);
      if (channel < head_dim) row[channel] = coded[j];
    }
    __syncthreads();
    if (thread < 32) {
      cuda::restore_row(row, head_dim, {channel_scale_of(cache, false, head), cache.rotates, work.norm}, lane);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int channel = thread + j * static_cast<int>(kMergeThreads);
      if (channel < head_dim) coded[j] = row[channel];
    }
  }

  const int group = work.rows / static_cast<int>(p.num_queries);
  const int64_t query = r / group, q_head = head * group + r % group;
  T* out = static_cast<T*>(p.out) + ((b * p.num_queries + query) * p.num_q_heads + q_head) * head_dim;
  const float nan = __uint_as_float(0x7fffffffu);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int channel = thread + j * static_cast<int>(kMergeThreads);
    if (channel >= head_dim) continue;
    const float value = broken ? nan : sum == 0.0f ? 0.0f : (plain[j] + coded[j]) / sum;
    out[channel] = cuda::from_float<T>(value);
  }
  if (p.lse == nullptr || thread != 0) return;
  cuda::SoftmaxState total;
  total.maximum = maximum;
  total.sum = broken ? nan : sum;
  p.lse[(b * p.num_q_heads + q_head) * p.num_queries + query] = total.log_sum_exp();
}

inline DecodeWork decode_work(const DecodeAttentionParams& params, cuda::WorkspacePlan& plan) {
  const KvCacheParams& cache = params.cache;
  DecodeWork work = {};
  work.p = params;
  work.splits = splits_of(cache);
  work.most_splits = static_cast<int>(work.splits.total());
  work.rows = static_cast<int>(params.num_q_heads / cache.num_heads * params.num_queries);
  const int strips = strips_of(work.rows);
  work.shared = shared_of(params, strips);
  work.row_blocks = static_cast<int>(ceil_div(work.rows, 16 * strips));
  work.norm = cuda::rotation_norm(cache.head_dim);
  const int64_t parts = cache.num_sequences * cache.num_heads * work.most_splits * work.rows;
  work.states = plan.take<float2>(parts);
  work.outputs = plan.take<float>(parts * cache.head_dim);
  return work;
}

}  // namespace tokcore::kv_cache

namespace tokcore {

size_t decode_attention_workspace_cuda(const DecodeAttentionParams& params) {
  cuda::WorkspacePlan plan;
  kv_cache::decode_work(params, plan);
  return plan.used();
}

void run_decode_attention_cuda(const DecodeAttentionParams& params, void* workspace, cuda::Stream stream) {
  using namespace kv_cache;
  cuda::WorkspacePlan plan(workspace);
  const DecodeWork work = decode_work(params, plan);
  cuda::LaunchConfig merge = cuda::launch_over(params.cache.num_sequences * params.cache.num_heads * work.rows, 1,
                                               kMergeThreads, stream, "decode_merge_kernel");
  merge.shared_bytes = static_cast<size_t>(work.most_splits + params.cache.head_dim) * sizeof(float);
  with_dtype(params.cache.dtype, [&](auto element) {
    using T = decltype(element);
    if (strips_of(work.rows) == 1) {
      launch_decode_splits<T, 1>(work, stream);
    } else {
      launch_decode_splits<T, 2>(work, stream);
    }
    cuda::launch<decode_merge_kernel<T>>(merge, work);
  });
}

}  // namespace tokcore
