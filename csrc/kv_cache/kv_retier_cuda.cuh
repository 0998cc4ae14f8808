// kv_retier: a block finds out what changes and whether it may, a block a head ranks its tokens, the pages in use are
// copied, and blocks write them anew from the copies. Included once by a .cu file, and once by the tests for the
// execution on the CPU.
#pragma once

#include "kv_cache/page_source_cuda.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/scan.cuh"
#include "tokcore/cuda/topk.cuh"
#include "tokcore/cuda/workspace.h"
#include "tokcore/kv_cache/kv_retier_cuda.h"

namespace tokcore::kv_cache {

// Pages of a sequence.
struct RetierRow {
  int32_t old_high, new_high;
  int32_t all;

  TOKCORE_DEVICE int32_t first_of(KvTierName name) const { return name == kHighTier ? 0 : new_high; }
};

struct RetierHeader {
  int32_t planned;   // by the first kernel: counts and page tables are good
  int32_t accepted;  // positions too
};

struct RetierWork {
  KvRetierParams p;
  KvTier copies[kNumTiers];  // the tiers as they were: keys and values of the pages in use
  float norm;                // rotation_norm(D)
  int64_t most_pages;        // of one sequence
  RetierHeader* header;
  RetierRow* rows;   // [B]
  uint32_t* used;    // [words] a bit for each page of a tier
  int32_t* sources;  // [B, Hkv, most tokens] by position: which token it was, those of the high tier first
  int32_t* order;    // [B, Hkv, most tokens] positions, those of the new high tier first; counted from the sinks on
  int64_t used_words;

  TOKCORE_HOST_DEVICE int64_t most_tokens() const { return most_pages * p.cache.page_size; }

  RetierWork(const KvRetierParams& params, cuda::WorkspacePlan& plan)
      : p(params), norm(cuda::rotation_norm(params.cache.head_dim)) {
    const KvCacheParams& cache = params.cache;
    const KvTier& high = cache.tiers[kHighTier];
    const KvTier& low = cache.tiers[kLowTier];
    const int64_t listed = max(0, params.num_positions - cache.num_sinks) / cache.page_size;
    most_pages = min(high.table_width + low.table_width, listed);
    used_words = ceil_div(max(high.num_pages, low.num_pages), 32);
    header = plan.take<RetierHeader>(1);
    rows = plan.take<RetierRow>(cache.num_sequences);
    used = plan.take<uint32_t>(used_words);
    sources = plan.take<int32_t>(cache.num_sequences * cache.num_heads * most_tokens());
    order = plan.take<int32_t>(cache.num_sequences * cache.num_heads * most_tokens());
    for (const KvTierName name : kTiers) {
      copies[name] = cache.tiers[name];
      const int64_t places = cache.tiers[name].num_pages * cache.num_heads;
      for (KvPages* pages : {&copies[name].keys, &copies[name].values}) {
        pages->data = plan.take<uint8_t>(places * pages->head_bytes);
        if (!pages->coded) continue;
        pages->scale = plan.take<BFloat16>(places * pages->head_scales);
        if (pages->zero != nullptr) pages->zero = plan.take<BFloat16>(places * pages->head_scales);
      }
    }
  }
};

// ---- the plan ------------------------------------------------------------------------------------------------------

inline constexpr unsigned kRetierPlanThreads = 512;

// What changes in sequence b, and whether its counts allow it.
TOKCORE_DEVICE bool plan_retier_row(const RetierWork& work, int64_t b) {
  const KvCacheParams& cache = work.p.cache;
  const KvTier& high = cache.tiers[kHighTier];
  const KvTier& low = cache.tiers[kLowTier];
  constexpr int kMostTokens = 1 << 30;
  const int length = cache.lengths[b], start = cache.window_starts[b];
  bool good = length >= 0 && length <= kMostTokens && start <= kMostTokens;
  good = good && start >= max(cache.num_sinks, length - cache.window_size);
  const int old_high = high.page_counts[b], old_low = low.page_counts[b], new_high = work.p.high_pages[b];
  good = good && old_high >= 0 && old_high <= high.table_width && old_low >= 0 && old_low <= low.table_width;
  const int64_t all = int64_t{old_high} + old_low;
  good = good && new_high >= 0 && new_high <= min(all, high.table_width) && all - new_high <= low.table_width;
  good = good && all <= work.most_pages;
  work.rows[b] = {old_high, new_high, static_cast<int32_t>(all)};
  return good;
}

// Whether every page that is read or written lies in the tier and belongs to one place of one sequence.
TOKCORE_DEVICE bool retier_pages_are_apart(const RetierWork& work, KvTierName name) {
  const KvTier& tier = work.p.cache.tiers[name];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int64_t i = thread; i < work.used_words; i += threads) work.used[i] = 0;
  __syncthreads();
  bool good = true;
  for (int64_t b = thread / 32; b < work.p.cache.num_sequences; b += threads / 32) {
    const RetierRow& row = work.rows[b];
    const int before = name == kHighTier ? row.old_high : row.all - row.old_high;
    const int after = name == kHighTier ? row.new_high : row.all - row.new_high;
    for (int i = thread % 32; i < max(before, after); i += 32) {
      const int page = tier.page_table[b * tier.table_width + i];
      if (page < 0 || page >= tier.num_pages) {
        good = false;
        continue;
      }
      const uint32_t bit = 1u << (page % 32);
      good = (atomicOr(&work.used[page / 32], bit) & bit) == 0 && good;
    }
  }
  __syncthreads();
  return good;
}

template <int = 0>
__global__ void kv_retier_plan_kernel(const __grid_constant__ RetierWork work) {
  const KvCacheParams& cache = work.p.cache;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  bool good = true;
  for (int64_t b = thread; b < cache.num_sequences; b += threads) good = plan_retier_row(work, b) && good;
  for (int pass = 0; pass < 2; ++pass) {
    const float* scale = pass == 0 ? cache.k_channel_scale : cache.v_channel_scale;
    if (scale == nullptr) continue;
    for (int64_t i = thread; i < cache.num_heads * cache.head_dim; i += threads) {
      good = good && scale[i] > 0.0f && cuda::is_finite(scale[i]);
    }
  }
  good = __syncthreads_and(good) != 0;
  if (good) {
    good = retier_pages_are_apart(work, kHighTier);
    good = retier_pages_are_apart(work, kLowTier) && good;
    good = __syncthreads_and(good) != 0;
  }
  if (thread == 0) *work.header = {good ? 1 : 0, good ? 1 : 0};
}

// ---- ranking -------------------------------------------------------------------------------------------------------

// Where the token-th of a head's tokens lies, those of the high tier first.
struct RetierPlace {
  KvTierName name;
  int64_t place;  // page * Hkv + head
  int within;     // the page
};

TOKCORE_DEVICE RetierPlace retier_place(const KvCacheParams& cache, int64_t b, int64_t head, int64_t token,
                                        int32_t high_pages) {
  const int64_t index = token / cache.page_size;
  const KvTierName name = index < high_pages ? kHighTier : kLowTier;
  const KvTier& tier = cache.tiers[name];
  const int64_t page = tier.page_table[b * tier.table_width + index - (name == kHighTier ? 0 : high_pages)];
  return {name, page * cache.num_heads + head, static_cast<int>(token % cache.page_size)};
}

inline constexpr unsigned kRetierOrderThreads = 512;
inline constexpr int kDigits = 256;  // of a byte
// Numbers of a block that ranks: those of block_sum_before, the counts of digits, and what one thread found.
inline constexpr int kRetierOrderNumbers = 32 + kDigits + 2;

// The k-th greatest of the keys of `count` tokens, 1 <= k <= count, a byte at a time from the top. `ties` becomes how
// many of the keys that equal it are among the k greatest.
template <class KeyOf>
TOKCORE_DEVICE uint32_t kth_greatest(int count, int k, KeyOf&& key_of, int* digits, int& ties) {
  int* found = digits + kDigits;
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += static_cast<int>(blockDim.x)) digits[i] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const uint64_t key = key_of(i);
      if (key >> (shift + 8) == prefix) atomicAdd(&digits[key >> shift & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      for (; digits[digit] < k; --digit) k -= digits[digit];
      found[0] = digit;
      found[1] = k;
    }
    __syncthreads();
    prefix = prefix << 8 | static_cast<uint32_t>(found[0]);
    k = found[1];
  }
  ties = k;
  return prefix;
}

// A block a head: which token each position is, and the positions in their new order. Equal scores go by position.
template <int = 0>
__global__ void kv_retier_order_kernel(const __grid_constant__ RetierWork work) {
  TOKCORE_SHARED_MEMORY(memory);
  int* sums = reinterpret_cast<int*>(memory);
  const KvRetierParams& p = work.p;
  const KvCacheParams& cache = p.cache;
  if (work.header->planned == 0) return;
  const int64_t item = blockIdx.x, b = item / cache.num_heads, head = item % cache.num_heads;
  const RetierRow row = work.rows[b];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int page_size = static_cast<int>(cache.page_size), count = row.all * page_size, k = row.new_high * page_size;
  int32_t* sources = work.sources + item * work.most_tokens();
  int32_t* order = work.order + item * work.most_tokens();

  for (int i = thread; i < count; i += threads) sources[i] = -1;
  __syncthreads();
  bool good = true;
  for (int token = thread; token < count; token += threads) {
    const RetierPlace at = retier_place(cache, b, head, token, row.old_high);
    const int64_t position = page_position(cache.tiers[at.name], at.place * page_size + at.within) - cache.num_sinks;
    good = position >= 0 && position < count && atomicExch(&sources[position], token) == -1 && good;
  }
  if (!good) work.header->accepted = 0;

  const float* scores = p.scores + b * p.stride_scores_sequence + head * p.stride_scores_head + cache.num_sinks;
  const auto key_of = [&](int i) { return static_cast<uint32_t>(cuda::rank_key(scores[i], 0) >> 32); };
  int ties = 0;
  const uint32_t least = k > 0 ? kth_greatest(count, k, key_of, sums + 32, ties) : ~0u;
  int chosen_before = 0, ties_before = 0;
  for (int first = 0; first < count; first += threads) {
    const int i = first + thread;
    const uint32_t key = i < count ? key_of(i) : 0;
    const bool is_tie = i < count && key == least;
    int total;
    const int tie = ties_before + cuda::block_sum_before(is_tie ? 1 : 0, sums, total);
    ties_before += total;
    const bool chosen = i < count && (key > least || (is_tie && tie < ties));
    const int place = chosen_before + cuda::block_sum_before(chosen ? 1 : 0, sums, total);
    chosen_before += total;
    if (i < count) order[chosen ? place : k + i - place] = i;
  }
}

// ---- copying -------------------------------------------------------------------------------------------------------

inline constexpr unsigned kRetierPageThreads = 256;

template <class E>
TOKCORE_DEVICE void copy_page(const E* from, E* to, int64_t page, int64_t elements) {
  const uint4* source = reinterpret_cast<const uint4*>(from + page * elements);
  uint4* target = reinterpret_cast<uint4*>(to + page * elements);
  const int64_t chunks = elements * static_cast<int64_t>(sizeof(E)) / 16;
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) target[i] = source[i];
}

// A block a page, all heads of it: whole 16-byte chunks, as page sizes and D are multiples of 16.
template <int = 0>
__global__ void kv_retier_copy_kernel(const __grid_constant__ RetierWork work) {
  if (work.header->accepted == 0) return;
  const KvCacheParams& cache = work.p.cache;
  const int64_t b = blockIdx.x / work.most_pages, index = blockIdx.x % work.most_pages;
  const RetierRow row = work.rows[b];
  if (index >= row.all) return;
  const RetierPlace at = retier_place(cache, b, 0, index * cache.page_size, row.old_high);
  const int64_t page = at.place / cache.num_heads;
  for (int pass = 0; pass < 2; ++pass) {
    const KvPages& from = pass == 0 ? cache.tiers[at.name].keys : cache.tiers[at.name].values;
    const KvPages& to = pass == 0 ? work.copies[at.name].keys : work.copies[at.name].values;
    copy_page(from.data, to.data, page, cache.num_heads * from.head_bytes);
    if (!from.coded) continue;
    copy_page(from.scale, to.scale, page, cache.num_heads * from.head_scales);
    if (from.zero != nullptr) copy_page(from.zero, to.zero, page, cache.num_heads * from.head_scales);
  }
}

// ---- writing -------------------------------------------------------------------------------------------------------

// A block writes keys or values of a head of a page.
template <class T>
__global__ void kv_retier_pages_kernel(const __grid_constant__ RetierWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  if (work.header->accepted == 0) return;
  const KvCacheParams& cache = work.p.cache;
  const bool keys = blockIdx.x % 2 == 0;
  const int64_t head = blockIdx.x / 2 % cache.num_heads;
  const int64_t index = blockIdx.x / 2 / cache.num_heads % work.most_pages;
  const int64_t b = blockIdx.x / 2 / cache.num_heads / work.most_pages;
  const RetierRow row = work.rows[b];
  if (index >= row.all) return;
  const int page_size = static_cast<int>(cache.page_size), head_dim = static_cast<int>(cache.head_dim);
  const RetierPlace to = retier_place(cache, b, head, index * page_size, row.new_high);
  const KvTier& tier = cache.tiers[to.name];
  const int64_t first = (b * cache.num_heads + head) * work.most_tokens();
  const int32_t* positions = work.order + first + index * page_size;
  const int32_t* sources = work.sources + first;
  const auto source_of = [&](int token) {
    const RetierPlace at = retier_place(cache, b, head, sources[positions[token]], row.old_high);
    const KvPages& from = keys ? work.copies[at.name].keys : work.copies[at.name].values;
    return PageSource<T>{.name = at.name,
                         .pages = &from,
                         .data = from.data + at.place * from.head_bytes,
                         .scale = from.scale + at.place * from.head_scales,
                         .zero = from.zero == nullptr ? nullptr : from.zero + at.place * from.head_scales,
                         .within = at.within,
                         .page_size = page_size,
                         .head_dim = head_dim,
                         .keys = keys};
  };
  if (keys) {
    for (int i = static_cast<int>(threadIdx.x); i < page_size; i += static_cast<int>(blockDim.x)) {
      set_page_position(tier, to.place * page_size + i, positions[i] + cache.num_sinks);
    }
    if (index == 0 && head == 0 && threadIdx.x == 0) {
      cache.tiers[kHighTier].page_counts[b] = row.new_high;
      cache.tiers[kLowTier].page_counts[b] = row.all - row.new_high;
    }
  }
  write_page_from<T>(cache, to.name, keys, to.place / cache.num_heads, head, work.norm, source_of, shared);
}

}  // namespace tokcore::kv_cache

namespace tokcore {

size_t kv_retier_workspace_cuda(const KvRetierParams& params) {
  cuda::WorkspacePlan plan;
  const kv_cache::RetierWork work(params, plan);
  return plan.used();
}

void run_kv_retier_cuda(const KvRetierParams& params, void* workspace, cuda::Stream stream) {
  using namespace kv_cache;
  cuda::WorkspacePlan plan(workspace);
  const RetierWork work(params, plan);
  const KvCacheParams& cache = params.cache;
  const int64_t heads = cache.num_sequences * cache.num_heads, pages = cache.num_sequences * work.most_pages;
  if (heads == 0 || pages == 0) return;  // no page whose tokens have scores
  cuda::launch<kv_retier_plan_kernel<0>>(
      {.grid = {1}, .threads = kRetierPlanThreads, .stream = stream, .name = "kv_retier_plan_kernel"}, work);
  cuda::LaunchConfig order = cuda::launch_over(heads, 1, kRetierOrderThreads, stream, "kv_retier_order_kernel");
  order.shared_bytes = kRetierOrderNumbers * sizeof(int);
  cuda::launch<kv_retier_order_kernel<0>>(order, work);
  cuda::launch<kv_retier_copy_kernel<0>>(
      cuda::launch_over(pages, 1, kRetierPageThreads, stream, "kv_retier_copy_kernel"), work);
  cuda::LaunchConfig written =
      cuda::launch_over(pages * cache.num_heads * 2, 1, kRetierPageThreads, stream, "kv_retier_pages_kernel");
  written.shared_bytes = page_scratch_bytes(kRetierPageThreads / 32, cache.head_dim, cache.page_size);
  with_dtype(cache.dtype,
             [&](auto element) { cuda::launch<kv_retier_pages_kernel<decltype(element)>>(written, work); });
}

}  // namespace tokcore
