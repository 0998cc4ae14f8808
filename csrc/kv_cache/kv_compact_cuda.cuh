// kv_compact: a block a layer and sequence finds out what moves and whether it may, blocks look whether written pages
// are apart, then rows of windows move in place and pages are written from copies of what they held. Included once by
// a .cu file, and once by the tests for the execution on the CPU.
#pragma once

#include "kv_cache/page_source_cuda.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/workspace.h"
#include "tokcore/kv_cache/kv_compact_cuda.h"

namespace tokcore::kv_cache {

// What happens to a sequence of a layer.
struct CompactRow {
  int32_t good;    // by the first kernel: the verdict and the counts allow it
  int32_t prefix;  // tokens before the tree
  int32_t old_length, new_length;
  int32_t old_start, new_start;  // of the window
  int32_t first_page;            // by position: the one that holds `prefix`
  int32_t num_pages;             // from first_page on; 0: the tree lies in sinks and window
};

struct CompactPage {
  int32_t tier;
  int32_t page;        // its number
  int32_t is_written;  // some token in it moves
};

// Device memory in which a block keeps what a head held of the tokens that may move.
struct CompactCopies {
  uint8_t* numbers;  // [N, D] rows from the sinks and the window, by node
  uint8_t* data;     // [most pages] heads of pages
  BFloat16* scale;
  BFloat16* zero;
};

inline constexpr int64_t kMostCompactBlocks = 256;  // that write pages, each with copies of its own

struct CompactWork {
  KvCompactCudaParams p;
  float norm;          // rotation_norm(D)
  int64_t most_pages;  // of one row
  int64_t num_gates;
  int64_t used_words;
  int64_t row_bytes;  // of a token's numbers of a head
  int64_t page_bytes, page_scales;
  CompactRow* rows;    // [layers, B]
  CompactPage* pages;  // [layers, B, most pages]
  int32_t* gates;      // [gates] by the second kernel: all rows and the pages of a tier of a layer are good
  uint32_t* used;      // [layers, tiers, 2, words] pages that are written, and those of them that were met
  CompactCopies copies;

  bool has_tiers() const { return p.cache.page_size > 0; }
  int64_t num_rows() const { return p.num_layers * p.cache.num_sequences; }
  int64_t page_blocks() const { return has_tiers() ? min(num_rows() * p.cache.num_heads * 2, kMostCompactBlocks) : 0; }

  CompactWork(const KvCompactCudaParams& params, cuda::WorkspacePlan& plan)
      : p(params),
        norm(cuda::rotation_norm(params.cache.head_dim)),
        row_bytes(params.cache.head_dim * static_cast<int64_t>(size_of(params.cache.dtype))),
        page_bytes(0),
        page_scales(0) {
    const KvCacheParams& cache = params.cache;
    most_pages = has_tiers() ? ceil_div(params.most_nodes, cache.page_size) : 0;
    num_gates = has_tiers() ? params.num_layers * kNumTiers : 1;
    used_words = ceil_div(max(cache.tiers[kHighTier].num_pages, cache.tiers[kLowTier].num_pages), 32);
    for (const KvTier& tier : cache.tiers) {
      page_bytes = max(page_bytes, max(tier.keys.head_bytes, tier.values.head_bytes));
      page_scales = max(page_scales, max(tier.keys.head_scales, tier.values.head_scales));
    }
    rows = plan.take<CompactRow>(num_rows());
    pages = plan.take<CompactPage>(num_rows() * most_pages);
    gates = plan.take<int32_t>(num_gates);
    used = plan.take<uint32_t>(has_tiers() ? num_gates * 2 * used_words : 0);
    copies.numbers = plan.take<uint8_t>(page_blocks() * params.most_nodes * row_bytes);
    copies.data = plan.take<uint8_t>(page_blocks() * most_pages * page_bytes);
    copies.scale = plan.take<BFloat16>(page_blocks() * most_pages * page_scales);
    copies.zero = plan.take<BFloat16>(page_blocks() * most_pages * page_scales);
  }
};

// One layer of the cache in shared memory: pointers that depend on the layer, without a copy in every thread.
inline constexpr size_t kLayerBytes = (sizeof(KvCacheParams) + 15) / 16 * 16;

TOKCORE_DEVICE const KvCacheParams& open_layer(const CompactWork& work, int64_t layer, unsigned char* shared) {
  KvCacheParams& cache = *reinterpret_cast<KvCacheParams*>(shared);
  __syncthreads();  // nobody reads another layer any more
  if (threadIdx.x == 0) {
    cache = work.p.cache;
    advance_to_layer(cache, layer);
  }
  __syncthreads();
  return cache;
}

// ---- the plan ------------------------------------------------------------------------------------------------------

inline constexpr unsigned kCompactPlanThreads = 128;

// The accepted nodes go down from the root. By all threads; the answer is each thread's own part.
TOKCORE_DEVICE bool path_is_good(const KvCompactCudaParams& p, int64_t b, int count, int kept) {
  if (count < 0 || count > p.most_nodes || kept < 0 || kept > min(count, p.most_accepted)) return false;
  const int32_t* nodes = p.nodes + b * p.most_accepted;
  for (int i = static_cast<int>(threadIdx.x); i < kept; i += static_cast<int>(blockDim.x)) {
    const int node = nodes[i], above = i == 0 ? -1 : nodes[i - 1];
    if (node <= above || node >= count || p.parents[b * p.most_nodes + node] != above) return false;
  }
  return true;
}

// Lengths, windows and page counts are such as the ops leave them, and the tree is part of the sequence.
TOKCORE_DEVICE bool counts_are_good(const KvCacheParams& cache, int64_t b, int count) {
  constexpr int kMostTokens = 1 << 30;
  const int length = cache.lengths[b], start = cache.window_starts[b];
  bool good = length >= 0 && length <= kMostTokens && start <= kMostTokens && count <= length;
  good = good && start >= max(cache.num_sinks, length - cache.window_size);
  for (int name = 0; name < kNumTiers; ++name) {
    const KvTier& tier = cache.tiers[name];
    if (tier.page_counts == nullptr) continue;
    good = good && tier.page_counts[b] >= 0 && tier.page_counts[b] <= tier.table_width;
  }
  return good;
}

// Whether the index-th page of a tier of sequence b holds the positions from `place` on, in order, in every head. By
// all threads, with one answer.
TOKCORE_DEVICE bool page_holds(const KvCacheParams& cache, int name, int64_t b, int index, int64_t place) {
  const KvTier& tier = cache.tiers[name];
  if (index < 0) return false;
  const int page = tier.page_table[b * tier.table_width + index];
  if (page < 0 || page >= tier.num_pages) return false;
  if (tier.positions == nullptr) return cache.num_sinks + index * cache.page_size == place;
  const int64_t slots = cache.num_heads * cache.page_size;
  bool good = true;
  for (int64_t slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    good = good && page_position(tier, page * slots + slot) == place + slot % cache.page_size;
  }
  return __syncthreads_and(good) != 0;
}

// The last pages of the tiers, as kv_append left them. By all threads, with one answer.
TOKCORE_DEVICE bool find_compact_pages(const KvCacheParams& cache, int64_t b, const CompactRow& row,
                                       const int32_t* nodes, CompactPage* pages) {
  int left_high = cache.tiers[kHighTier].page_counts == nullptr ? 0 : cache.tiers[kHighTier].page_counts[b];
  int left_low = cache.tiers[kLowTier].page_counts == nullptr ? 0 : cache.tiers[kLowTier].page_counts[b];
  for (int i = row.num_pages - 1; i >= 0; --i) {
    const int64_t place = cache.num_sinks + (row.first_page + i) * cache.page_size;
    const bool low = page_holds(cache, kLowTier, b, left_low - 1, place);
    if (!low && !page_holds(cache, kHighTier, b, left_high - 1, place)) return false;
    (low ? left_low : left_high) -= 1;
    bool moves = false;
    const int64_t end = min(place + cache.page_size, row.new_length);
    for (int64_t at = max(place, row.prefix) + threadIdx.x; at < end; at += blockDim.x) {
      moves = moves || nodes[at - row.prefix] != at - row.prefix;
    }
    const bool is_written = __syncthreads_or(moves) != 0 && place < row.new_start;
    if (threadIdx.x != 0) continue;
    const KvTier& tier = cache.tiers[low ? kLowTier : kHighTier];
    const int index = low ? left_low : left_high;
    pages[i] = {low ? kLowTier : kHighTier, tier.page_table[b * tier.table_width + index], is_written ? 1 : 0};
  }
  return true;
}

// Grid: a block for each sequence of each layer.
template <int = 0>
__global__ void kv_compact_plan_kernel(const __grid_constant__ CompactWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  const KvCompactCudaParams& p = work.p;
  const int64_t B = p.cache.num_sequences, layer = blockIdx.x / B, b = blockIdx.x % B;
  const KvCacheParams& cache = open_layer(work, layer, shared);
  const int count = p.counts[b], kept = p.accepted[b];
  bool good = path_is_good(p, b, count, kept) && counts_are_good(cache, b, count);
  good = __syncthreads_and(good) != 0;
  CompactRow row = {};
  if (good) {
    row.old_length = cache.lengths[b];
    row.prefix = row.old_length - count;
    row.new_length = row.prefix + kept;
    row.old_start = row.new_start = cache.window_starts[b];
    const int sinks = static_cast<int>(cache.num_sinks), page_size = static_cast<int>(cache.page_size);
    if (count > 0 && row.old_start > max(row.prefix, sinks)) {
      good = page_size > 0 && row.old_start <= row.old_length && cache.window_size >= page_size;
      good = good && (row.old_start - sinks) % page_size == 0;
      if (good) {
        row.first_page = row.prefix > sinks ? (row.prefix - sinks) / page_size : 0;
        row.num_pages = (row.old_start - sinks) / page_size - row.first_page;
        const int whole = row.new_length > sinks ? (row.new_length - sinks) / page_size : 0;
        row.new_start = static_cast<int32_t>(min(row.old_start, sinks + whole * page_size));
        good =
            find_compact_pages(cache, b, row, p.nodes + b * p.most_accepted, work.pages + blockIdx.x * work.most_pages);
      }
    }
  }
  row.good = good ? 1 : 0;
  if (threadIdx.x == 0) work.rows[blockIdx.x] = row;
}

// ---- pages apart ---------------------------------------------------------------------------------------------------

inline constexpr unsigned kCompactGateThreads = 512;

// Whether the pages of a tier of a layer lie in the tier, and those that are about to be written belong to one place of
// one sequence. By all threads; the answer is each thread's own part.
TOKCORE_DEVICE bool compact_pages_are_apart(const CompactWork& work, const KvCacheParams& cache, int64_t layer,
                                            int name) {
  const KvTier& tier = cache.tiers[name];
  if (tier.page_counts == nullptr) return true;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int64_t B = cache.num_sequences;
  uint32_t* written = work.used + (layer * kNumTiers + name) * 2 * work.used_words;
  uint32_t* met = written + work.used_words;
  for (int64_t i = thread; i < 2 * work.used_words; i += threads) written[i] = 0;
  __syncthreads();
  for (int64_t b = thread; b < B; b += threads) {
    const CompactRow& row = work.rows[layer * B + b];
    for (int i = 0; i < row.num_pages; ++i) {
      const CompactPage page = work.pages[(layer * B + b) * work.most_pages + i];
      if (page.tier == name && page.is_written != 0) atomicOr(&written[page.page / 32], 1u << (page.page % 32));
    }
  }
  __syncthreads();
  bool good = true;
  for (int64_t b = thread / 32; b < B; b += threads / 32) {
    const int count = tier.page_counts[b];
    for (int i = thread % 32; i < count; i += 32) {
      const int page = tier.page_table[b * tier.table_width + i];
      if (page < 0 || page >= tier.num_pages) {
        good = false;
        continue;
      }
      const uint32_t bit = 1u << (page % 32);
      if ((written[page / 32] & bit) != 0) good = (atomicOr(&met[page / 32], bit) & bit) == 0 && good;
    }
  }
  return good;
}

// Grid: a block for each tier of each layer, or one where there are no tiers.
template <int = 0>
__global__ void kv_compact_gate_kernel(const __grid_constant__ CompactWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  const int64_t rows = work.p.num_layers * work.p.cache.num_sequences;
  bool good = true;
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) good = good && work.rows[i].good != 0;
  good = __syncthreads_and(good) != 0;
  if (good && work.p.cache.page_size > 0) {
    const int64_t layer = blockIdx.x / kNumTiers;
    const KvCacheParams& cache = open_layer(work, layer, shared);
    good = compact_pages_are_apart(work, cache, layer, static_cast<int>(blockIdx.x % kNumTiers));
    good = __syncthreads_and(good) != 0;
  }
  if (threadIdx.x == 0) work.gates[blockIdx.x] = good ? 1 : 0;
}

// By all threads, with one answer.
TOKCORE_DEVICE bool gates_are_open(const CompactWork& work) {
  bool open = true;
  for (int64_t i = threadIdx.x; i < work.num_gates; i += blockDim.x) open = open && work.gates[i] != 0;
  return __syncthreads_and(open) != 0;
}

// ---- rows ----------------------------------------------------------------------------------------------------------

// The row of a token outside the pages.
TOKCORE_DEVICE uint8_t* recent_row(const CompactWork& work, const KvCacheParams& cache, int64_t b, int64_t head,
                                   bool keys, int place) {
  const bool sink = place < cache.num_sinks;
  const int slots = static_cast<int>(sink ? cache.num_sinks : cache.window_size);
  void* data = sink ? (keys ? cache.sink_k : cache.sink_v) : (keys ? cache.window_k : cache.window_v);
  return static_cast<uint8_t*>(data) + ((b * cache.num_heads + head) * slots + place % slots) * work.row_bytes;
}

inline constexpr unsigned kCompactRowThreads = 128;

// Grid: a block for keys or values of each sequence of each layer. A thread moves the same 16 bytes of every row, so
// that each of them is read before it is overwritten: sources lie above their targets and are taken in ascending order.
// The blocks of keys also write what the tensors say of a sequence.
template <int = 0>
__global__ void kv_compact_rows_kernel(const __grid_constant__ CompactWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  if (!gates_are_open(work)) return;
  const KvCompactCudaParams& p = work.p;
  const bool keys = blockIdx.x % 2 == 0;
  const int64_t item = blockIdx.x / 2, B = p.cache.num_sequences, layer = item / B, b = item % B;
  const KvCacheParams& cache = open_layer(work, layer, shared);
  const CompactRow row = work.rows[item];
  if (keys && threadIdx.x == 0) {
    cache.lengths[b] = row.new_length;
    cache.window_starts[b] = row.new_start;
    for (int i = 0; i < row.num_pages; ++i) {
      const int64_t place = cache.num_sinks + (row.first_page + i) * cache.page_size;
      if (place >= row.new_start) --cache.tiers[work.pages[item * work.most_pages + i].tier].page_counts[b];
    }
  }
  if (row.num_pages > 0) return;
  const int32_t* nodes = p.nodes + b * p.most_accepted;
  const int chunks = static_cast<int>(work.row_bytes / 16);
  for (int64_t i = threadIdx.x; i < cache.num_heads * chunks; i += blockDim.x) {
    const int64_t head = i / chunks, chunk = i % chunks;
    for (int place = row.prefix; place < row.new_length; ++place) {
      const int source = row.prefix + nodes[place - row.prefix];
      if (source == place) continue;
      const uint4 value = reinterpret_cast<const uint4*>(recent_row(work, cache, b, head, keys, source))[chunk];
      reinterpret_cast<uint4*>(recent_row(work, cache, b, head, keys, place))[chunk] = value;
    }
  }
}

// ---- pages ---------------------------------------------------------------------------------------------------------

inline constexpr unsigned kCompactPageThreads = 256;

// Whole 16-byte chunks, by all threads.
template <class E>
TOKCORE_DEVICE void copy_chunks(const E* from, E* to, int64_t elements) {
  const int64_t chunks = elements * static_cast<int64_t>(sizeof(E)) / 16;
  for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
}

// Keys or values of a head of one row: first copied, then written.
template <class T>
struct CompactHead {
  const CompactWork& work;
  const KvCacheParams& cache;
  const CompactRow row;
  const CompactPage* pages;
  const int32_t* nodes;
  int64_t b, head;
  bool keys;
  CompactCopies copies;  // of this block

  TOKCORE_DEVICE const KvPages& pages_of(int tier) const {
    return keys ? cache.tiers[tier].keys : cache.tiers[tier].values;
  }
  TOKCORE_DEVICE bool in_pages(int place) const { return place >= cache.num_sinks && place < row.old_start; }

  TOKCORE_DEVICE void copy() const {
    const int chunks = static_cast<int>(work.row_bytes / 16), tokens = row.old_length - row.prefix;
    for (int i = static_cast<int>(threadIdx.x); i < tokens * chunks; i += static_cast<int>(blockDim.x)) {
      const int node = i / chunks, chunk = i % chunks;
      if (in_pages(row.prefix + node)) continue;
      reinterpret_cast<uint4*>(copies.numbers + node * work.row_bytes)[chunk] =
          reinterpret_cast<const uint4*>(recent_row(work, cache, b, head, keys, row.prefix + node))[chunk];
    }
    for (int i = 0; i < row.num_pages; ++i) {
      const KvPages& from = pages_of(pages[i].tier);
      const int64_t place = pages[i].page * cache.num_heads + head;
      copy_chunks(from.data + place * from.head_bytes, copies.data + i * work.page_bytes, from.head_bytes);
      if (!from.coded) continue;
      copy_chunks(from.scale + place * from.head_scales, copies.scale + i * work.page_scales, from.head_scales);
      if (from.zero == nullptr) continue;
      copy_chunks(from.zero + place * from.head_scales, copies.zero + i * work.page_scales, from.head_scales);
    }
  }

  // The token that will stand in a place, as it was.
  TOKCORE_DEVICE PageSource<T> source_of(int place) const {
    const int source = place < row.prefix ? place : row.prefix + nodes[place - row.prefix];
    const int page_size = static_cast<int>(cache.page_size), head_dim = static_cast<int>(cache.head_dim);
    PageSource<T> made = {.name = kNumTiers,
                          .pages = nullptr,
                          .data = copies.numbers + (source - row.prefix) * work.row_bytes,
                          .scale = nullptr,
                          .zero = nullptr,
                          .within = 0,
                          .page_size = page_size,
                          .head_dim = head_dim,
                          .keys = keys};
    if (!in_pages(source)) return made;
    const int beyond = source - static_cast<int>(cache.num_sinks), i = beyond / page_size - row.first_page;
    made.name = static_cast<KvTierName>(pages[i].tier);
    made.pages = &pages_of(pages[i].tier);
    made.data = copies.data + i * work.page_bytes;
    made.scale = copies.scale + i * work.page_scales;
    made.zero = made.pages->zero == nullptr ? nullptr : copies.zero + i * work.page_scales;
    made.within = beyond % page_size;
    return made;
  }

  TOKCORE_DEVICE void write(unsigned char* shared) const {
    const int page_size = static_cast<int>(cache.page_size), sinks = static_cast<int>(cache.num_sinks);
    for (int i = 0; i < row.num_pages; ++i) {
      const int first = sinks + (row.first_page + i) * page_size;
      if (first >= row.new_start || pages[i].is_written == 0) continue;
      write_page_from<T>(
          cache, static_cast<KvTierName>(pages[i].tier), keys, pages[i].page, head, work.norm,
          [&](int token) { return source_of(first + token); }, shared);
    }
    // What stands in sinks and window afterwards, a warp a token.
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const cuda::RowRules rules = {channel_scale_of(cache, keys, head), cache.rotates, work.norm};
    float* buffer = reinterpret_cast<float*>(shared) + warp * cache.head_dim;
    const int begin = static_cast<int>(min(row.prefix, sinks + row.first_page * page_size));
    for (int place = begin + warp; place < row.new_length; place += static_cast<int>(blockDim.x) / 32) {
      if (place >= sinks && place < row.new_start) continue;
      restore_numbers<T>(source_of(place), rules, buffer,
                         reinterpret_cast<T*>(recent_row(work, cache, b, head, keys, place)), lane);
    }
  }
};

// Blocks take turns at (row, head, keys or values) of rows whose tree has reached the pages.
template <class T>
__global__ void kv_compact_pages_kernel(const __grid_constant__ CompactWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  if (!gates_are_open(work)) return;
  const KvCompactCudaParams& p = work.p;
  const int64_t B = p.cache.num_sequences, H = p.cache.num_heads, block = blockIdx.x;
  const CompactCopies copies = {work.copies.numbers + block * p.most_nodes * work.row_bytes,
                                work.copies.data + block * work.most_pages * work.page_bytes,
                                work.copies.scale + block * work.most_pages * work.page_scales,
                                work.copies.zero + block * work.most_pages * work.page_scales};
  for (int64_t item = block; item < p.num_layers * B * H * 2; item += gridDim.x) {
    const int64_t index = item / 2 / H;
    if (work.rows[index].num_pages == 0) continue;
    const KvCacheParams& cache = open_layer(work, index / B, shared);
    const int64_t b = index % B;
    const CompactHead<T> head{work,
                              cache,
                              work.rows[index],
                              work.pages + index * work.most_pages,
                              p.nodes + b * p.most_accepted,
                              b,
                              item / 2 % H,
                              item % 2 == 0,
                              copies};
    head.copy();
    __syncthreads();
    head.write(shared + kLayerBytes);
  }
}

}  // namespace tokcore::kv_cache

namespace tokcore {

size_t kv_compact_workspace_cuda(const KvCompactCudaParams& params) {
  cuda::WorkspacePlan plan;
  const kv_cache::CompactWork work(params, plan);
  return plan.used();
}

void run_kv_compact_cuda(const KvCompactCudaParams& params, void* workspace, cuda::Stream stream) {
  using namespace kv_cache;
  cuda::WorkspacePlan plan(workspace);
  const CompactWork work(params, plan);
  const KvCacheParams& cache = params.cache;
  if (work.num_rows() == 0 || params.most_nodes == 0) return;
  cuda::LaunchConfig planned =
      cuda::launch_over(work.num_rows(), 1, kCompactPlanThreads, stream, "kv_compact_plan_kernel");
  planned.shared_bytes = kLayerBytes;
  cuda::launch<kv_compact_plan_kernel<0>>(planned, work);
  cuda::LaunchConfig gate = cuda::launch_over(work.num_gates, 1, kCompactGateThreads, stream, "kv_compact_gate_kernel");
  gate.shared_bytes = kLayerBytes;
  cuda::launch<kv_compact_gate_kernel<0>>(gate, work);
  cuda::LaunchConfig rows =
      cuda::launch_over(work.num_rows() * 2, 1, kCompactRowThreads, stream, "kv_compact_rows_kernel");
  rows.shared_bytes = kLayerBytes;
  cuda::launch<kv_compact_rows_kernel<0>>(rows, work);
  if (!work.has_tiers()) return;
  cuda::LaunchConfig pages =
      cuda::launch_over(work.page_blocks(), 1, kCompactPageThreads, stream, "kv_compact_pages_kernel");
  pages.shared_bytes = kLayerBytes + page_scratch_bytes(kCompactPageThreads / 32, cache.head_dim, cache.page_size);
  with_dtype(cache.dtype, [&](auto element) { cuda::launch<kv_compact_pages_kernel<decltype(element)>>(pages, work); });
}

}  // namespace tokcore
