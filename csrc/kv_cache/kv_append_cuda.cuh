// kv_append: a block finds out what the append does and whether it may; then pages leave the windows, and the new
// tokens come in. Included once by a .cu file, and once by the tests for the execution on the CPU.
#pragma once

#include "kv_cache/pages_cuda.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/scan.cuh"
#include "tokcore/cuda/workspace.h"
#include "tokcore/kv_cache/kv_append_cuda.h"

namespace tokcore::kv_cache {

// What one sequence gets; nothing if old_length is new_length.
struct AppendRow {
  int32_t old_length, new_length;
  int32_t old_start, new_start;  // of the window
  int32_t first_token;           // in AppendWork::token_of
  int32_t page_item;             // pages written by the sequences before
  int32_t first_page[kNumTiers];
  int32_t pages_to_write[kNumTiers];

  TOKCORE_DEVICE int pages() const { return pages_to_write[kHighTier] + pages_to_write[kLowTier]; }
};

struct AppendHeader {
  int32_t accepted;
  int32_t pages;  // that all sequences write
};

struct AppendWork {
  KvAppendCudaParams p;
  float norm;  // rotation_norm(D)
  AppendHeader* header;
  AppendRow* rows;    // [B]
  int32_t* counts;    // [B] new tokens
  int32_t* token_of;  // [T] by sequence and position: which row of k
  uint32_t* used;     // [words] a bit for each page of a tier
  int64_t used_words;

  AppendWork(const KvAppendCudaParams& params, cuda::WorkspacePlan& plan)
      : p(params), norm(cuda::rotation_norm(params.cache.head_dim)) {
    const KvTier* tiers = params.cache.tiers;
    used_words = ceil_div(max(tiers[kHighTier].num_pages, tiers[kLowTier].num_pages), 32);
    header = plan.take<AppendHeader>(1);
    rows = plan.take<AppendRow>(params.cache.num_sequences);
    counts = plan.take<int32_t>(params.cache.num_sequences);
    token_of = plan.take<int32_t>(params.num_tokens);
    used = plan.take<uint32_t>(used_words);
  }
};

// ---- the plan ------------------------------------------------------------------------------------------------------

inline constexpr unsigned kPlanThreads = 512;

// Where the tokens of each sequence lie among the new ones: positions go on where the sequence ends, in order.
TOKCORE_DEVICE bool find_tokens(const AppendWork& work, int* shared) {
  const KvAppendCudaParams& p = work.p;
  const int64_t B = p.cache.num_sequences;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  bool good = true;
  for (int64_t b = thread; b < B; b += threads) work.counts[b] = 0;
  for (int64_t t = thread; t < p.num_tokens; t += threads) work.token_of[t] = -1;
  __syncthreads();
  for (int64_t t = thread; t < p.num_tokens; t += threads) {
    const int64_t slot = p.slots[t];
    if (slot == -1) continue;
    if (slot < 0 || slot >= B * p.capacity) {
      good = false;
    } else {
      atomicAdd(&work.counts[slot / p.capacity], 1);
    }
  }
  __syncthreads();
  int before = 0;
  for (int64_t first = 0; first < B; first += threads) {
    const int64_t b = first + thread;
    int total;
    const int sum = cuda::block_sum_before(b < B ? work.counts[b] : 0, shared, total);
    if (b < B) work.rows[b].first_token = before + sum;
    before += total;
  }
  __syncthreads();
  const auto place_of = [&](int64_t slot, int64_t& rank) {
    const int64_t b = slot / p.capacity;
    rank = slot % p.capacity - p.cache.lengths[b];
    return rank >= 0 && rank < work.counts[b] ? work.token_of + work.rows[b].first_token + rank : nullptr;
  };
  int64_t rank;
  for (int64_t t = thread; t < p.num_tokens; t += threads) {
    const int64_t slot = p.slots[t];
    if (slot < 0 || slot >= B * p.capacity) continue;
    int32_t* place = place_of(slot, rank);
    if (place == nullptr) {
      good = false;
    } else {
      *place = static_cast<int32_t>(t);
    }
  }
  __syncthreads();
  // A slot that came twice has left another place of its sequence empty.
  for (int64_t t = thread; t < p.num_tokens; t += threads) {
    const int64_t slot = p.slots[t];
    if (slot < 0 || slot >= B * p.capacity) continue;
    const int32_t* place = place_of(slot, rank);
    if (place == nullptr) continue;
    good = good && *place == t && (rank == 0 || (place[-1] >= 0 && place[-1] < t));
  }
  return good;
}

// What sequence b gets, and whether it may; page_item is not yet set.
TOKCORE_DEVICE bool plan_row(const AppendWork& work, int64_t b) {
  const KvCacheParams& cache = work.p.cache;
  AppendRow& row = work.rows[b];
  constexpr int kMostTokens = 1 << 30;
  row.old_length = cache.lengths[b];
  row.old_start = cache.window_starts[b];
  bool good = row.old_length >= 0 && row.old_length <= kMostTokens;
  good =
      good && row.old_start <= kMostTokens && row.old_start >= max(cache.num_sinks, row.old_length - cache.window_size);
  for (int name = 0; name < kNumTiers; ++name) {
    row.first_page[name] = row.pages_to_write[name] = 0;
    const KvTier& tier = cache.tiers[name];
    if (tier.page_counts == nullptr) continue;
    row.first_page[name] = tier.page_counts[b];
    good = good && row.first_page[name] >= 0 && row.first_page[name] <= tier.table_width;
  }
  row.new_length = row.old_length + (good ? work.counts[b] : 0);
  row.new_start = row.old_start;
  if (!good || work.counts[b] == 0) return good;
  const int page_size = static_cast<int>(cache.page_size);
  const int waiting = row.new_length - row.old_start - static_cast<int>(work.p.residual);
  const int leaving = waiting > 0 ? waiting / page_size : 0;
  row.new_start = row.old_start + leaving * page_size;
  int rest = leaving;
  bool has_tiers = false;
  for (int name = 0; name < kNumTiers; ++name) {
    const KvTier& tier = cache.tiers[name];
    if (tier.page_counts == nullptr) continue;
    has_tiers = true;
    const int room = static_cast<int>(tier.table_width) - row.first_page[name];
    row.pages_to_write[name] = rest < room ? rest : room;
    rest -= row.pages_to_write[name];
    for (int i = 0; i < row.pages_to_write[name]; ++i) {
      const int page = tier.page_table[b * tier.table_width + row.first_page[name] + i];
      good = good && page >= 0 && page < tier.num_pages;
    }
  }
  return good && (rest == 0 || !has_tiers);
}

// Whether every page that is about to be written belongs to one place of one sequence.
TOKCORE_DEVICE bool pages_are_apart(const AppendWork& work, int name) {
  const KvCacheParams& cache = work.p.cache;
  const KvTier& tier = cache.tiers[name];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t B = cache.num_sequences;
  bool writes = false;
  for (int64_t b = thread; b < B; b += threads) writes = writes || work.rows[b].pages_to_write[name] > 0;
  if (__syncthreads_or(writes) == 0) return true;
  for (int64_t i = thread; i < work.used_words; i += threads) work.used[i] = 0;
  __syncthreads();
  bool good = true;
  for (int pass = 0; pass < 2; ++pass) {
    const bool is_new = pass == 1;
    for (int64_t b = thread / 32; b < B; b += threads / 32) {
      const AppendRow& row = work.rows[b];
      const int first = is_new ? row.first_page[name] : 0;
      const int end = row.first_page[name] + (is_new ? row.pages_to_write[name] : 0);
      for (int i = first + thread % 32; i < end; i += 32) {
        const int page = tier.page_table[b * tier.table_width + i];
        if (page < 0 || page >= tier.num_pages) continue;
        const uint32_t bit = 1u << (page % 32);
        const bool was_used = (atomicOr(&work.used[page / 32], bit) & bit) != 0;
        good = good && !(is_new && was_used);
      }
    }
    __syncthreads();
  }
  return good;
}

template <int = 0>
__global__ void kv_append_plan_kernel(const AppendWork work) {
  TOKCORE_SHARED_MEMORY(memory);
  int* shared = reinterpret_cast<int*>(memory);  // [32]
  const KvCacheParams& cache = work.p.cache;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  bool good = find_tokens(work, shared);
  int pages = 0;
  for (int64_t first = 0; first < cache.num_sequences; first += threads) {
    const int64_t b = first + thread;
    int mine = 0, total;
    if (b < cache.num_sequences) {
      good = plan_row(work, b) && good;
      mine = work.rows[b].pages();
    }
    const int before = cuda::block_sum_before(mine, shared, total);
    if (b < cache.num_sequences) work.rows[b].page_item = pages + before;
    pages += total;
  }
  good = __syncthreads_and(good) != 0;
  if (good) {
    for (int name = 0; name < kNumTiers; ++name) good = pages_are_apart(work, name) && good;
    for (int pass = 0; pass < 2; ++pass) {
      const float* scale = pass == 0 ? cache.k_channel_scale : cache.v_channel_scale;
      if (scale == nullptr) continue;
      for (int64_t i = thread; i < cache.num_heads * cache.head_dim; i += threads) {
        good = good && scale[i] > 0.0f && cuda::is_finite(scale[i]);
      }
    }
    good = __syncthreads_and(good) != 0;
  }
  if (thread == 0) *work.header = {good ? 1 : 0, good ? pages : 0};
}

// ---- writing -------------------------------------------------------------------------------------------------------

template <class T>
struct AppendAccess {
  const AppendWork& work;

  TOKCORE_DEVICE const T* new_row(bool keys, int64_t token, int64_t head) const {
    const KvAppendCudaParams& p = work.p;
    return keys ? static_cast<const T*>(p.k) + token * p.stride_k_token + head * p.stride_k_head
                : static_cast<const T*>(p.v) + token * p.stride_v_token + head * p.stride_v_head;
  }
  TOKCORE_DEVICE T* window_row(bool keys, int64_t b, int64_t head, int64_t position) const {
    const KvCacheParams& cache = work.p.cache;
    const int64_t slot = (b * cache.num_heads + head) * cache.window_size + position % cache.window_size;
    return static_cast<T*>(keys ? cache.window_k : cache.window_v) + slot * cache.head_dim;
  }
  // A token's numbers, among the new ones or still in the window.
  TOKCORE_DEVICE const T* row(bool keys, int64_t b, int64_t head, int64_t position) const {
    const AppendRow& row = work.rows[b];
    if (position < row.old_length) return window_row(keys, b, head, position);
    return new_row(keys, work.token_of[row.first_token + position - row.old_length], head);
  }
};

// Blocks take turns at (page, head, keys or values).
inline constexpr unsigned kPageThreads = 256;
template <class T>
__global__ void kv_append_pages_kernel(const AppendWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  const KvCacheParams& cache = work.p.cache;
  const AppendAccess<T> access{work};
  const int64_t items = int64_t{work.header->pages} * cache.num_heads * 2;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const bool keys = item % 2 == 0;
    const int64_t head = item / 2 % cache.num_heads;
    const int32_t index = static_cast<int32_t>(item / 2 / cache.num_heads);
    int64_t b = 0, end = cache.num_sequences;  // the last sequence whose pages begin at `index` or before
    while (end - b > 1) {
      const int64_t middle = (b + end) / 2;
      (work.rows[middle].page_item <= index ? b : end) = middle;
    }
    const AppendRow& row = work.rows[b];
    const int32_t within = index - row.page_item;
    const KvTierName name = within < row.pages_to_write[kHighTier] ? kHighTier : kLowTier;
    const KvTier& tier = cache.tiers[name];
    const int32_t in_tier = row.first_page[name] + within - (name == kLowTier ? row.pages_to_write[kHighTier] : 0);
    const int64_t page = tier.page_table[b * tier.table_width + in_tier];
    const int64_t first = row.old_start + int64_t{within} * cache.page_size;
    write_page<T>(
        cache, tier, keys, page, head, work.norm,
        [&](int token, int channel) { return access.row(keys, b, head, first + token)[channel]; }, shared);
    if (!keys || tier.positions == nullptr) continue;
    for (int64_t i = threadIdx.x; i < cache.page_size; i += blockDim.x) {
      set_page_position(tier, (page * cache.num_heads + head) * cache.page_size + i, first + i);
    }
  }
}

// A warp for each new token and head: into sinks and window, unless it went straight into a page. The first block also
// writes what the tensors say of every sequence.
inline constexpr unsigned kRecentThreads = 128;
template <class T>
__global__ void kv_append_recent_kernel(const AppendWork work) {
  const KvAppendCudaParams& p = work.p;
  const KvCacheParams& cache = p.cache;
  if (work.header->accepted == 0) return;
  if (blockIdx.x == 0) {
    for (int64_t b = threadIdx.x; b < cache.num_sequences; b += blockDim.x) {
      const AppendRow& row = work.rows[b];
      if (row.new_length == row.old_length) continue;
      cache.lengths[b] = row.new_length;
      cache.window_starts[b] = row.new_start;
      for (int name = 0; name < kNumTiers; ++name) {
        if (row.pages_to_write[name] > 0) {
          cache.tiers[name].page_counts[b] = row.first_page[name] + row.pages_to_write[name];
        }
      }
    }
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t item = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (item >= p.num_tokens * cache.num_heads) return;
  const int64_t token = item / cache.num_heads, head = item % cache.num_heads;
  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  const int64_t b = slot / p.capacity, position = slot % p.capacity;
  const AppendRow& row = work.rows[b];
  const AppendAccess<T> access{work};
  for (int pass = 0; pass < 2; ++pass) {
    const bool keys = pass == 0;
    const T* from = access.new_row(keys, token, head);
    if (position < cache.num_sinks) {
      T* sink = static_cast<T*>(keys ? cache.sink_k : cache.sink_v) +
                ((b * cache.num_heads + head) * cache.num_sinks + position) * cache.head_dim;
      for (int64_t i = lane; i < cache.head_dim; i += 32) sink[i] = from[i];
    }
    if (position >= row.new_start) {
      T* slot_row = access.window_row(keys, b, head, position);
      for (int64_t i = lane; i < cache.head_dim; i += 32) slot_row[i] = from[i];
    }
  }
}

}  // namespace tokcore::kv_cache

namespace tokcore {

size_t kv_append_workspace_cuda(const KvAppendCudaParams& params) {
  cuda::WorkspacePlan plan;
  const kv_cache::AppendWork work(params, plan);
  return plan.used();
}

void run_kv_append_cuda(const KvAppendCudaParams& params, void* workspace, cuda::Stream stream) {
  using namespace kv_cache;
  cuda::WorkspacePlan plan(workspace);
  const AppendWork work(params, plan);
  const KvCacheParams& cache = params.cache;
  cuda::launch<kv_append_plan_kernel<0>>({.grid = {1},
                                          .threads = kPlanThreads,
                                          .shared_bytes = 32 * sizeof(int),
                                          .stream = stream,
                                          .name = "kv_append_plan_kernel"},
                                         work);
  // Every page comes from the window or the new tokens; what there is not to do is found out by blocks without work.
  constexpr int64_t kMostPageBlocks = 4096;
  const int64_t most_tokens = cache.num_sequences * cache.window_size + params.num_tokens;
  const int64_t blocks = min(most_tokens / cache.page_size * cache.num_heads * 2, kMostPageBlocks);
  cuda::LaunchConfig pages = cuda::launch_over(blocks, 1, kPageThreads, stream, "kv_append_pages_kernel");
  pages.shared_bytes = page_scratch_bytes(kPageThreads / 32, cache.head_dim, cache.page_size);
  const cuda::LaunchConfig recent = cuda::launch_over(params.num_tokens * cache.num_heads, kRecentThreads / 32,
                                                      kRecentThreads, stream, "kv_append_recent_kernel");
  with_dtype(cache.dtype, [&](auto element) {
    using T = decltype(element);
    if (cache.tiers[kHighTier].page_counts != nullptr || cache.tiers[kLowTier].page_counts != nullptr) {
      cuda::launch<kv_append_pages_kernel<T>>(pages, work);
    }
    cuda::launch<kv_append_recent_kernel<T>>(recent, work);
  });
}

}  // namespace tokcore
