// kv_saliency: what is known of rows and tokens, two sweeps over the logits, and between them the merge of the first.
// Included once by a .cu file, and once by the tests for the execution on the CPU; the sweeps are compiled one by one.
#pragma once

#include "kv_cache/kv_saliency_work_cuda.h"
#include "tokcore/common/philox.h"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/online_softmax.cuh"

namespace tokcore::kv_cache {

template <class T, bool kAligned>
void launch_saliency(const SaliencyWork& work, bool finds_lse, cuda::Stream stream);

inline constexpr unsigned kSaliencyThreads = 256;

// A thread a row.
template <int = 0>
__global__ void kv_saliency_rows_kernel(const __grid_constant__ SaliencyWork work) {
  const KvSaliencyParams& p = work.p;
  const int64_t index = int64_t{blockIdx.x} * kSaliencyThreads + threadIdx.x;
  if (index >= work.items() * work.rows) return;
  const int64_t item = index / work.rows, b = item / p.num_heads, head = item % p.num_heads;
  const int64_t row = index % work.rows, probe = row / work.group, q_head = head * work.group + row % work.group;
  const int32_t* positions = p.positions + b * p.num_probes;
  SaliencyRow data = {0.0f, 1.0f, -1, -1};
  for (int64_t i = 0; i < p.num_probes; ++i) data.latest = positions[i] > data.latest ? positions[i] : data.latest;
  const auto bounded = [&](int position) {
    return position < p.num_tokens ? position : static_cast<int>(p.num_tokens) - 1;
  };
  data.latest = bounded(data.latest);
  data.last = positions[probe] < 0 ? -1 : bounded(positions[probe]);
  if (p.reduce == SaliencyReduce::kDecayed && data.last >= 0) {
    data.weight = powf(p.decay, static_cast<float>(data.latest - data.last));
  }
  if (p.lse != nullptr) data.lse = p.lse[(b * p.num_q_heads + q_head) * p.num_probes + probe];
  work.row_data[index] = data;
}

// A thread a token and head of keys.
template <int = 0>
__global__ void kv_saliency_noise_kernel(const __grid_constant__ SaliencyWork work) {
  const int64_t index = int64_t{blockIdx.x} * kSaliencyThreads + threadIdx.x;
  if (index >= work.items() * work.p.num_tokens) return;
  const int64_t item = index / work.p.num_tokens, token = index % work.p.num_tokens;
  const PhiloxWords words = philox(work.p.seed, static_cast<uint64_t>(token), static_cast<uint64_t>(item));
  work.noise[index] = static_cast<float>(-log(-log(uniform_of(words.word[0]))));
}

// A thread a row: the parts of its softmax in order.
template <int = 0>
__global__ void kv_saliency_merge_kernel(const __grid_constant__ SaliencyWork work, int parts) {
  const int64_t index = int64_t{blockIdx.x} * kSaliencyThreads + threadIdx.x;
  if (index >= work.items() * work.rows) return;
  const int64_t item = index / work.rows, row = index % work.rows;
  cuda::SoftmaxState total;
  for (int split = 0; split < work.num_splits; ++split) {
    for (int part = 0; part < parts; ++part) {
      const float2 found = work.states[((item * work.num_splits + split) * kSaliencyParts + part) * work.rows + row];
      cuda::SoftmaxState state;
      state.maximum = found.x;
      state.sum = found.y;
      total.merge(state);
    }
  }
  work.row_data[index].lse = total.log_sum_exp();
}

}  // namespace tokcore::kv_cache

namespace tokcore {

size_t kv_saliency_workspace_cuda(const KvSaliencyParams& params) {
  cuda::WorkspacePlan plan;
  const kv_cache::SaliencyWork work(params, plan);
  return plan.used();
}

void run_kv_saliency_cuda(const KvSaliencyParams& params, void* workspace, cuda::Stream stream) {
  using namespace kv_cache;
  cuda::WorkspacePlan plan(workspace);
  const SaliencyWork work(params, plan);
  const auto config = [&](int64_t count, const char* name) {
    return cuda::launch_over(count, kSaliencyThreads, kSaliencyThreads, stream, name);
  };
  const int64_t rows = work.items() * work.rows;
  cuda::launch<kv_saliency_rows_kernel<0>>(config(rows, "kv_saliency_rows_kernel"), work);
  if (work.noise != nullptr) {
    cuda::launch<kv_saliency_noise_kernel<0>>(config(work.items() * params.num_tokens, "kv_saliency_noise_kernel"),
                                              work);
  }
  with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const auto sweep = [&](bool finds_lse) {
      work.aligned ? launch_saliency<T, true>(work, finds_lse, stream)
                   : launch_saliency<T, false>(work, finds_lse, stream);
    };
    if (params.lse == nullptr) {
      sweep(true);
      const int parts = sizeof(T) == 4 ? 4 : 2;  // warps across the columns of a tile
      cuda::launch<kv_saliency_merge_kernel<0>>(config(rows, "kv_saliency_merge_kernel"), work, parts);
    }
    sweep(false);
  });
}

}  // namespace tokcore
