// decode_attention: splits of the cache attended one after the other, then merged. Compiled once per instruction-set
// level.
#include "tokcore/kv_cache/decode_attention.h"

#include <cmath>
#include <type_traits>

#include "tokcore/kv_cache/decode_fma.h"
#include "tokcore/kv_cache/decode_prefetch.h"
#if defined(__AMX_BF16__)
#include "tokcore/kv_cache/decode_codes.h"
#include "tokcore/kv_cache/decode_tiles.h"
#endif

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

// Which engine attends numbers of type T, and which one codes beside queries of type T. fp32 keeps fp32 precision.
#if defined(__AMX_BF16__)
using WorkerState = TileState;
template <class T>
using NumberEngine = std::conditional_t<std::is_same_v<T, BFloat16>, TileAttention, FmaAttention<T>>;
template <class T>
using CodeEngine = std::conditional_t<std::is_same_v<T, float>, FmaAttention<T>, CodeAttention>;
#else
struct WorkerState {};
template <class T>
using NumberEngine = FmaAttention<T>;
template <class T>
using CodeEngine = FmaAttention<T>;
#endif

// Walks the blocks of consecutive splits.
class Cursor {
 public:
  template <class SightOf>
  bool next(const KvCacheParams& cache, SightOf&& sight_of, Block& block) {
    for (; index_ < end_; ++index_, opened_ = false) {
      if (!opened_) reader_ = BlockReader(cache, splits_[index_], sight_of(splits_[index_].sequence));
      opened_ = true;
      if (reader_.next(block)) return true;
    }
    return false;
  }
  Cursor(const KvCacheParams& cache, const Split* splits, int64_t begin, int64_t end)
      : splits_(splits), index_(begin), end_(end), reader_(cache, splits[begin], Sight{}) {}
  int64_t split() const { return index_; }

 private:
  const Split* splits_;
  int64_t index_, end_;
  bool opened_ = false;
  BlockReader reader_;
};

template <class T>
class Decode {
 public:
  Decode(const DecodeAttentionParams& params, const Threads& threads)
      : p_(params),
        cache_(params.cache),
        threads_(threads),
        D_(params.cache.head_dim),
        group_size_(params.num_q_heads / params.cache.num_heads),
        num_rows_(group_size_ * params.num_queries),
        padded_rows_(round_up(num_rows_, 16)) {
    num_splits_ = 0;
    for (int64_t b = 0; b < cache_.num_sequences; ++b) num_splits_ += splits_of(b) * cache_.num_heads;
  }

  void run() {
    Arena counting;
    plan(counting);
    Scratch scratch(counting.used());
    Arena arena(scratch.data());
    plan(arena);
    list_splits();
    attend_splits();
    merge_splits();
  }

 private:
  // One worker's memory.
  struct Worker {
    Worker(const KvCacheParams& cache, int64_t padded_rows, Arena& arena)
        : numbers(cache, padded_rows, arena),
          codes(cache, padded_rows, arena),
          queries(arena.take<float>(padded_rows * cache.head_dim)),
          out(arena.take<float>(padded_rows * cache.head_dim)),
          states(arena.take<RowSoftmax>(padded_rows)),
          scores(arena.take<float>(16 * kScoreStride)),
          positions(arena.take<int32_t>(kBlockTokens)),
          blocks(arena.take<Block>(2)) {}
    NumberEngine<T> numbers;
    CodeEngine<T> codes;
    float* queries;      // [padded_rows, D]
    float* out;          // [padded_rows, D] of the current split, in the engine's order of channels
    RowSoftmax* states;  // [padded_rows]
    float* scores;       // [16, kScoreStride]
    int32_t* positions;  // [kBlockTokens] of the columns, -1: none
    Block* blocks;       // [2]
    int64_t item = -1;   // sequence * Hkv + head that the queries belong to
  };

  int64_t pages_of_split() const { return kSplitTokens / cache_.page_size; }
  int64_t pages_of(KvTierName name, int64_t b) const {
    return cache_.tiers[name].page_counts == nullptr ? 0 : cache_.tiers[name].page_counts[b];
  }
  int64_t splits_of(int64_t b) const {
    int64_t count = 1;  // sinks and window
    for (const KvTierName name : kTiers) {
      if (pages_of(name, b) > 0) count += ceil_div(pages_of(name, b), pages_of_split());
    }
    return count;
  }

  void plan(Arena& arena) {
    splits_ = arena.take<Split>(num_splits_);
    first_split_ = arena.take<int64_t>(cache_.num_sequences);
    states_ = arena.take<RowSoftmax>(num_splits_ * num_rows_);
    outputs_ = arena.take<float>(num_splits_ * num_rows_ * D_);
    Arena counting;
    const Worker counted(cache_, padded_rows_, counting);
    worker_bytes_ = static_cast<int64_t>(counting.used());
    workers_ = arena.take<char>(worker_bytes_ * threads_.count);
  }

  void list_splits() {
    int64_t made = 0;
    for (int64_t b = 0; b < cache_.num_sequences; ++b) {
      first_split_[b] = made;
      for (int64_t head = 0; head < cache_.num_heads; ++head) {
        for (const KvTierName name : kTiers) {
          const SplitSource source = name == kHighTier ? kHighPages : kLowPages;
          const int64_t count = pages_of(name, b);
          for (int64_t first = 0; first < count; first += pages_of_split()) {
            splits_[made++] = {b, head, source, first, min(count - first, pages_of_split())};
          }
        }
        splits_[made++] = {b, head, kRecent, 0, 0};
      }
    }
  }

  Sight sight_of(int64_t b) const {
    const int64_t length = cache_.lengths[b];
    return {length - p_.num_queries, length - 1, p_.window, cache_.num_sinks};
  }

  // Workers take runs of splits, so that each can fetch ahead; which run is whose changes no result.
  void attend_splits() {
    constexpr int64_t kRunsPerWorker = 8;
    const int64_t num_runs = min(num_splits_, threads_.count * kRunsPerWorker);
    for_each_item(
        threads_, num_runs,
        [&](int64_t run, int index) {
          Arena arena(workers_ + worker_bytes_ * index);
          Worker worker(cache_, padded_rows_, arena);
          attend_run(worker, num_splits_ * run / num_runs, num_splits_ * (run + 1) / num_runs);
        },
        [](int, auto&& run) {
          [[maybe_unused]] WorkerState state;
          run();
        });
  }

  void attend_run(Worker& worker, int64_t begin, int64_t end) {
    for (int64_t i = begin * num_rows_; i < end * num_rows_; ++i) states_[i] = RowSoftmax();
    auto sight = [&](int64_t b) { return sight_of(b); };
    Cursor cursor(cache_, splits_, begin, end);
    Block* current = worker.blocks;
    Block* next = worker.blocks + 1;
    bool more = cursor.next(cache_, sight, *current);
    int64_t begun = -1;
    while (more) {
      const int64_t split = cursor.split();
      more = cursor.next(cache_, sight, *next);
      if (begun != split) begin_split(worker, splits_[split]);
      begun = split;
      attend_block(worker, splits_[split], *current, more ? next : nullptr);
      if (!more || cursor.split() != split) finish_split(worker, split);
      Block* done = current;
      current = next;
      next = done;
    }
  }

  bool is_coded(const Split& split) const {
    return split.source != kRecent && cache_.tiers[split.source == kHighPages ? kHighTier : kLowTier].keys.coded;
  }

  void begin_split(Worker& worker, const Split& split) {
    const int64_t item = split.sequence * cache_.num_heads + split.head;
    if (worker.item != item) {
      worker.item = item;
      load_queries(worker, split);
    }
    is_coded(split) ? worker.codes.begin(split) : worker.numbers.begin(split);
    for (int64_t i = 0; i < padded_rows_; ++i) worker.states[i] = RowSoftmax();
    for (int64_t i = 0; i < padded_rows_ * D_; ++i) worker.out[i] = 0.0f;
  }

  // Row i of the queries: query i / G, head i % G of the group.
  void load_queries(Worker& worker, const Split& split) {
    for (int64_t row = 0; row < padded_rows_; ++row) {
      float* to = worker.queries + row * D_;
      if (row >= num_rows_) {
        for (int64_t d = 0; d < D_; ++d) to[d] = 0.0f;
        continue;
      }
      const int64_t head = split.head * group_size_ + row % group_size_;
      const T* from = static_cast<const T*>(p_.q) + split.sequence * p_.stride_q_sequence +
                      row / group_size_ * p_.stride_q_query + head * p_.stride_q_head;
      load_row(from, D_, to);
    }
    worker.numbers.set_queries(worker.queries, padded_rows_, p_.scale);
    if (cache_.tiers[kHighTier].keys.coded || cache_.tiers[kLowTier].keys.coded) {
      const float* channel_scale = channel_scale_of(cache_, PageKind::kKeys, split.head);
      for (int64_t row = 0; row < num_rows_; ++row) {
        float* query = worker.queries + row * D_;
        if (channel_scale != nullptr) {
          for (int64_t d = 0; d < D_; ++d) query[d] *= channel_scale[d];
        }
        if (cache_.rotates) rotate(query, D_);
      }
      worker.codes.set_queries(worker.queries, padded_rows_, p_.scale);
    }
  }

  void attend_block(Worker& worker, const Split& split, const Block& block, const Block* next) {
    BlockPrefetcher prefetch(next);
    if (is_coded(split)) {
      attend_rows(worker, worker.codes, split, block, prefetch);
    } else {
      attend_rows(worker, worker.numbers, split, block, prefetch);
    }
  }

  template <class Engine>
  void attend_rows(Worker& worker, Engine& engine, const Split& split, const Block& block, BlockPrefetcher& prefetch) {
    const Sight sight = sight_of(split.sequence);
    const bool masks = needs_mask(split, block, sight);
    if (masks) list_positions(block, worker.positions);
    for (int64_t first = 0; first < num_rows_; first += Engine::kRows) {
      const int64_t rows = min(num_rows_ - first, Engine::kRows);
      engine.score(block, first, rows, worker.scores, prefetch);
      float shrink[Engine::kRows];
      for (int64_t row = 0; row < rows; ++row) {
        float* scores = worker.scores + row * kScoreStride;
        if (p_.softcap > 0.0f) cap(scores, block.columns());
        if (masks)
          mask(scores, block.columns(), worker.positions, sight, sight.first_query + (first + row) / group_size_);
        shrink[row] = worker.states[first + row].take(scores, block.columns());
        prefetch.after_softmax(row + 1, rows);
      }
      engine.accumulate(block, rows, worker.scores, shrink, worker.out + first * D_, prefetch);
    }
  }

  void cap(float* scores, int64_t count) const {
    const Vec cap(p_.softcap), inverse(1.0f / p_.softcap);
    for (int64_t i = 0; i < count; i += Vec::kLanes) (tanh(Vec::load(scores + i) * inverse) * cap).store(scores + i);
  }

  // Pages hold positions before the window only; most blocks are seen by every query.
  bool needs_mask(const Split& split, const Block& block, const Sight& sight) const {
    if (block.has_gaps) return true;
    const bool all_before = sight.window == 0 && cache_.window_starts[split.sequence] - 1 <= sight.first_query;
    for (int64_t i = 0; i < block.num_segments; ++i) {
      const Segment& segment = block.segments[i];
      if (segment.listed != nullptr) {
        if (!all_before) return true;
      } else if (!sight.all_see(segment.first_position, segment.first_position + segment.count - 1)) {
        return true;
      }
    }
    return false;
  }
  void list_positions(const Block& block, int32_t* positions) const {
    for (int64_t i = 0; i < block.num_segments; ++i) {
      const Segment& segment = block.segments[i];
      for (int64_t j = 0; j < block.width; ++j) {
        const bool listed = segment.listed != nullptr;
        const int64_t position =
            listed ? position_in_page(*segment.listed, segment.slot + j) : segment.first_position + j;
        positions[i * block.width + j] = j < segment.count ? static_cast<int32_t>(position) : -1;
      }
    }
  }
  static void mask(float* scores, int64_t count, const int32_t* positions, const Sight& sight, int64_t query) {
    for (int64_t i = 0; i < count; ++i) {
      if (positions[i] < 0 || !sight.sees(positions[i], query)) scores[i] = -INFINITY;
    }
  }

  void finish_split(Worker& worker, int64_t index) {
    const Split& split = splits_[index];
    const bool coded = is_coded(split);
    const float* channel_scale = channel_scale_of(cache_, PageKind::kValues, split.head);
    for (int64_t row = 0; row < num_rows_; ++row) {
      float* to = outputs_ + (index * num_rows_ + row) * D_;
      const float* from = worker.out + row * D_;
      if (coded) {
        worker.codes.finish(from, to);
        restore_row(to, D_, channel_scale, cache_.rotates);
      } else {
        worker.numbers.finish(from, to);
      }
      states_[index * num_rows_ + row] = worker.states[row];
    }
  }

  void merge_splits() {
    for_each_item(threads_, cache_.num_sequences * cache_.num_heads, [&](int64_t item, int) {
      const int64_t b = item / cache_.num_heads, head = item % cache_.num_heads;
      const int64_t count = splits_of(b), first = first_split_[b] + head * count;
      for (int64_t row = 0; row < num_rows_; ++row) merge_row(b, head, row, first, count);
    });
  }

  void merge_row(int64_t b, int64_t head, int64_t row, int64_t first, int64_t count) {
    RowSoftmax total;
    float sums[kMostChannels] = {};
    for (int64_t i = first; i < first + count; ++i) {
      const RowSoftmax& state = states_[i * num_rows_ + row];
      if (state.sum == 0.0f) continue;  // saw nothing; its output may never have been written
      total.merge(state, outputs_ + (i * num_rows_ + row) * D_, D_, sums);
    }
    const int64_t query = row / group_size_, q_head = head * group_size_ + row % group_size_;
    const bool saw_nothing = total.sum == 0.0f;
    const Vec divisor(saw_nothing ? 1.0f : total.sum);
    for (int64_t d = 0; d < D_; d += Vec::kLanes) (Vec::load(sums + d) / divisor).store(sums + d);
    store_row(sums, D_, static_cast<T*>(p_.out) + ((b * p_.num_queries + query) * p_.num_q_heads + q_head) * D_);
    if (p_.lse == nullptr) return;
    p_.lse[(b * p_.num_q_heads + q_head) * p_.num_queries + query] =
        saw_nothing ? -INFINITY : total.maximum + std::log(total.sum);
  }

  static constexpr int64_t kMostChannels = 256;

  const DecodeAttentionParams& p_;
  const KvCacheParams& cache_;
  const Threads& threads_;
  int64_t D_, group_size_, num_rows_, padded_rows_, num_splits_;
  Split* splits_ = nullptr;         // [num_splits]
  int64_t* first_split_ = nullptr;  // [B]
  RowSoftmax* states_ = nullptr;    // [num_splits, rows]
  float* outputs_ = nullptr;        // [num_splits, rows, D] weighted sums
  char* workers_ = nullptr;
  int64_t worker_bytes_ = 0;
};

}  // namespace

void decode_attention(const DecodeAttentionParams& params, const Threads& threads) {
  with_dtype(params.cache.dtype, [&](auto element) { Decode<decltype(element)>(params, threads).run(); });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
