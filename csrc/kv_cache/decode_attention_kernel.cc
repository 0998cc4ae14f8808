// decode_attention: parts of the cache attended one after the other, then merged. Compiled once per instruction-set
// level.
#include "tokcore/kv_cache/decode_attention.h"

#include <cmath>
#include <type_traits>

#include "tokcore/kv_cache/decode_fma.h"
#include "tokcore/kv_cache/decode_prefetch.h"
#include "tokcore/kv_cache/decode_tasks.h"
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

// Walks the blocks of consecutive tasks.
class Cursor {
 public:
  Cursor(const KvCacheParams& cache, const DecodeTasks& tasks, int64_t begin, int64_t end)
      : cache_(cache), tasks_(tasks), index_(begin), end_(end), reader_(cache, tasks.split_of(tasks.task(begin)), {}) {}

  bool next(Block& block) {
    for (; index_ < end_; ++index_, opened_ = false) {
      if (!opened_) {
        const Split split = tasks_.split_of(tasks_.task(index_));
        reader_ = BlockReader(cache_, split, tasks_.sight_of(split.sequence));
      }
      opened_ = true;
      if (reader_.next(block)) return true;
    }
    return false;
  }
  int64_t task() const { return index_; }

 private:
  const KvCacheParams& cache_;
  const DecodeTasks& tasks_;
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
        tasks_(params),
        D_(params.cache.head_dim),
        group_size_(params.num_q_heads / params.cache.num_heads),
        num_rows_(group_size_ * params.num_queries),
        padded_rows_(padded(tasks_.most_rows())) {}

  void run() {
    Arena counting;
    plan(counting);
    Scratch scratch(counting.used());
    Arena arena(scratch.data());
    plan(arena);
    tasks_.list();
    attend_tasks();
    merge_parts();
  }

 private:
  // Rows of a worker's memory: engines take 16 or 32 at a time.
  static int64_t padded(int64_t rows) { return round_up(rows, rows > 16 ? 32 : 16); }
  static constexpr int64_t kMostRows = max(NumberEngine<T>::kRows, CodeEngine<T>::kRows);  // at a time

  // One worker's memory. Rows are those of the current task: of its sequences in turn, their queries, the heads of a
  // group.
  struct Worker {
    Worker(const KvCacheParams& cache, int64_t padded_rows, Arena& arena)
        : numbers(cache, padded_rows, arena),
          codes(cache, padded_rows, arena),
          queries(arena.take<float>(padded_rows * cache.head_dim)),
          out(arena.take<float>(padded_rows * cache.head_dim)),
          states(arena.take<RowSoftmax>(padded_rows)),
          members(arena.take<int64_t>(padded_rows)),
          scores(arena.take<float>(kMostRows * kScoreStride)),
          places(arena.take<int32_t>(kBlockTokens)),
          masked(arena.take<int32_t>(kBlockTokens / kGroupTokens)),
          blocks(arena.take<Block>(2)) {}
    NumberEngine<T> numbers;
    CodeEngine<T> codes;
    float* queries;      // [padded_rows, D]
    float* out;          // [padded_rows, D] of the current task, in the engine's order of channels
    RowSoftmax* states;  // [padded_rows]
    int64_t* members;    // [num_members] the sequences that the queries belong to
    float* scores;       // [kMostRows, kScoreStride]
    int32_t* places;     // [kBlockTokens] of the columns of masked segments, -1: none
    int32_t* masked;     // [num_masked] segments that some query does not see whole
    Block* blocks;       // [2]
    int64_t num_members = 0, head = -1, num_rows = 0, num_masked = 0;
  };

  void plan(Arena& arena) {
    tasks_.plan(arena);
    const int64_t parts = tasks_.num_parts() * cache_.num_heads;
    states_ = arena.take<RowSoftmax>(parts * num_rows_);
    outputs_ = arena.take<float>(parts * num_rows_ * D_);
    Arena counting;
    const Worker counted(cache_, padded_rows_, counting);
    workers_ = arena.take_per_thread<char>(threads_.count, static_cast<int64_t>(counting.used()));
  }

  // Workers take runs of tasks, so that each can fetch ahead; which run is whose changes no result.
  void attend_tasks() {
    constexpr int64_t kRunsPerWorker = 8;
    const int64_t num_tasks = tasks_.num_tasks(), num_runs = min(num_tasks, threads_.count * kRunsPerWorker);
    for_each_item(
        threads_, num_runs,
        [&](int64_t run, int index) {
          Arena arena(workers_[index]);
          Worker worker(cache_, padded_rows_, arena);
          attend_run(worker, num_tasks * run / num_runs, num_tasks * (run + 1) / num_runs);
        },
        [](int, auto&& run) {
          [[maybe_unused]] WorkerState state;
          run();
        });
  }

  void attend_run(Worker& worker, int64_t begin, int64_t end) {
    // What no query sees gives no block.
    for (int64_t i = begin; i < end; ++i) {
      for_each_member(tasks_.task(i), [&](int64_t, int64_t first_row, int64_t num_rows) {
        for (int64_t row = 0; row < num_rows; ++row) states_[first_row + row] = RowSoftmax();
      });
    }
    Cursor cursor(cache_, tasks_, begin, end);
    Block* current = worker.blocks;
    Block* next = worker.blocks + 1;
    bool more = cursor.next(*current);
    int64_t begun = -1;
    while (more) {
      const int64_t index = cursor.task();
      const Task& task = tasks_.task(index);
      const Split split = tasks_.split_of(task);
      more = cursor.next(*next);
      if (begun != index) begin_task(worker, task, split);
      begun = index;
      attend_block(worker, task, split, *current, more ? next : nullptr);
      if (!more || cursor.task() != index) finish_task(worker, task, split);
      Block* done = current;
      current = next;
      next = done;
    }
  }

  // visit(sequence, first row of its part in states_ and outputs_, number of rows).
  template <class Visit>
  void for_each_member(const Task& task, Visit&& visit) const {
    int64_t part = task.part;
    for (int64_t i = 0; i < task.num_members; ++i, part = tasks_.part(part).next) {
      const int64_t sequence = tasks_.part(part).sequence;
      visit(sequence, (part * cache_.num_heads + task.head) * num_rows_, tasks_.rows_of(sequence));
    }
  }

  bool is_coded(const Split& split) const {
    return split.source != kRecent && cache_.tiers[split.source == kHighPages ? kHighTier : kLowTier].keys.coded;
  }

  void begin_task(Worker& worker, const Task& task, const Split& split) {
    if (!holds_queries_of(worker, task)) load_queries(worker, task);
    is_coded(split) ? worker.codes.begin(split) : worker.numbers.begin(split);
    for (int64_t i = 0; i < worker.num_rows; ++i) worker.states[i] = RowSoftmax();
    for (int64_t i = 0; i < worker.num_rows * D_; ++i) worker.out[i] = 0.0f;
  }

  bool holds_queries_of(const Worker& worker, const Task& task) const {
    if (worker.head != task.head || worker.num_members != task.num_members) return false;
    int64_t i = 0;
    bool same = true;
    for_each_member(task, [&](int64_t b, int64_t, int64_t) { same &= worker.members[i++] == b; });
    return same;
  }

  // Row i of a sequence's queries: query i / G, head i % G of the group.
  void load_queries(Worker& worker, const Task& task) {
    worker.head = task.head;
    worker.num_members = worker.num_rows = 0;
    for_each_member(task, [&](int64_t b, int64_t, int64_t num_rows) {
      worker.members[worker.num_members++] = b;
      for (int64_t row = 0; row < num_rows; ++row) {
        const int64_t head = task.head * group_size_ + row % group_size_;
        const T* from = static_cast<const T*>(p_.q) + b * p_.stride_q_sequence + row / group_size_ * p_.stride_q_query +
                        head * p_.stride_q_head;
        load_row(from, D_, worker.queries + worker.num_rows++ * D_);
      }
    });
    const int64_t padded_rows = padded(worker.num_rows);
    for (int64_t i = worker.num_rows * D_; i < padded_rows * D_; ++i) worker.queries[i] = 0.0f;
    worker.numbers.set_queries(worker.queries, padded_rows, p_.scale);
    if (cache_.tiers[kHighTier].keys.coded || cache_.tiers[kLowTier].keys.coded) {
      const float* channel_scale = channel_scale_of(cache_, PageKind::kKeys, task.head);
      for (int64_t row = 0; row < worker.num_rows; ++row) {
        float* query = worker.queries + row * D_;
        if (channel_scale != nullptr) {
          for (int64_t d = 0; d < D_; ++d) query[d] *= channel_scale[d];
        }
        if (cache_.rotates) rotate(query, D_);
      }
      worker.codes.set_queries(worker.queries, padded_rows, p_.scale);
    }
  }

  void attend_block(Worker& worker, const Task& task, const Split& split, const Block& block, const Block* next) {
    // A task of several sequences lies before the queries of each.
    const Sight sight = tasks_.sight_of(split.sequence);
    worker.num_masked = 0;
    if (task.num_members == 1) list_masked(worker, split, block, sight);
    if (is_coded(split)) {
      attend_rows(worker, worker.codes, block, sight, next);
    } else {
      attend_rows(worker, worker.numbers, block, sight, next);
    }
  }

  template <class Engine>
  void attend_rows(Worker& worker, Engine& engine, const Block& block, const Sight& sight, const Block* next) {
    const float unit = p_.softcap > 0.0f ? 1.0f : engine.unit();  // of the scores that become weights
    const bool adjusts = p_.softcap > 0.0f || worker.num_masked > 0;
    const auto adjust = [&](float* scores, int64_t row) {
      if (p_.softcap > 0.0f) cap(scores, block.columns(), engine.unit());
      if (worker.num_masked > 0) mask(worker, block, scores, sight, row / group_size_);
    };
    if constexpr (requires { engine.many(); }) {
      if (worker.num_rows > Engine::kFewRows) {
        BlockPrefetcher prefetch(next, 1);
        return engine.many().attend(block, worker.num_rows, unit, worker.states, worker.out, adjusts, adjust, prefetch);
      }
    }
    BlockPrefetcher prefetch(next, ceil_div(worker.num_rows, Engine::kRows));
    for (int64_t first = 0; first < worker.num_rows; first += Engine::kRows) {
      const int64_t rows = min(worker.num_rows - first, Engine::kRows);
      prefetch.begin_chunk(first / Engine::kRows);
      engine.score(block, first, rows, worker.scores, prefetch);
      float shrink[Engine::kRows];
      for (int64_t row = 0; row < rows; ++row) {
        float* scores = worker.scores + row * kScoreStride;
        if (adjusts) adjust(scores, first + row);
        shrink[row] = engine.weigh(worker.states[first + row], row, scores, block.columns(), unit);
        prefetch.after_softmax(row + 1, rows);
      }
      engine.accumulate(block, rows, worker.scores, shrink, worker.out + first * D_, prefetch);
    }
  }

  // softcap * tanh(score / softcap), of scores worth `unit`.
  void cap(float* scores, int64_t count, float unit) const {
    const Vec cap(p_.softcap), inverse(unit / p_.softcap);
    for (int64_t i = 0; i < count; i += Vec::kLanes) (tanh(Vec::load(scores + i) * inverse) * cap).store(scores + i);
  }

  // Segments with missing tokens or some that a query does not see. Pages hold positions before the window only; most
  // are seen by every query.
  void list_masked(Worker& worker, const Split& split, const Block& block, const Sight& sight) const {
    const bool all_before = sight.window == 0 && cache_.window_starts[split.sequence] - 1 <= sight.first_query;
    for (int64_t i = 0; i < block.num_segments; ++i) {
      const Segment& segment = block.segments[i];
      const int64_t first = segment.first_position;
      const bool seen = segment.listed != nullptr ? all_before : sight.all_see(first, first + segment.count - 1);
      if (seen && segment.count == block.width) continue;
      worker.masked[worker.num_masked++] = static_cast<int32_t>(i);
      int32_t* places = worker.places + i * block.width;
      for (int64_t j = 0; j < block.width; ++j) {
        const int64_t place =
            segment.listed != nullptr ? position_in_page(*segment.listed, segment.slot + j) : first + j;
        places[j] = j < segment.count ? static_cast<int32_t>(place) : -1;
      }
    }
  }

  void mask(const Worker& worker, const Block& block, float* scores, const Sight& sight, int64_t query) const {
    for (int64_t k = 0; k < worker.num_masked; ++k) {
      const int64_t at = worker.masked[k] * block.width;
      const Segment& segment = block.segments[worker.masked[k]];
      const bool in_order = segment.listed == nullptr && sight.window == 0;
      for (int64_t j = 0; j < block.width; j += 16) {
        uint32_t seen = 0;
        if (in_order) {
          const int64_t count = min(segment.count - j, 16);
          seen = sight.seen_bits(segment.first_position + j, query) & ((1u << count) - 1);
        } else {
          const int32_t* places = worker.places + at + j;
          for (int lane = 0; lane < 16; ++lane) {
            if (places[lane] >= 0 && sight.sees(places[lane], query)) seen |= 1u << lane;
          }
        }
        hide(scores + at + j, seen);
      }
    }
  }
  // 16 scores, a bit for each that stays.
  static void hide(float* scores, uint32_t seen) {
    if (seen == 0xffff) return;
    constexpr uint32_t kAll = (1u << Vec::kLanes) - 1;
    for (int lane = 0; lane < 16; lane += Vec::kLanes, seen >>= Vec::kLanes) {
      select(Mask::from_bits(seen & kAll), Vec::load(scores + lane), Vec(-INFINITY)).store(scores + lane);
    }
  }

  void finish_task(Worker& worker, const Task& task, const Split& split) {
    const bool coded = is_coded(split);
    const float* channel_scale = channel_scale_of(cache_, PageKind::kValues, split.head);
    int64_t from_row = 0;
    for_each_member(task, [&](int64_t, int64_t first_row, int64_t num_rows) {
      for (int64_t row = first_row; row < first_row + num_rows; ++row, ++from_row) {
        const float* from = worker.out + from_row * D_;
        float* to = outputs_ + row * D_;
        if (coded) {
          worker.codes.finish(from, to);
          restore_row(to, D_, channel_scale, cache_.rotates);
        } else {
          worker.numbers.finish(from, to);
        }
        states_[row] = worker.states[from_row];
      }
    });
  }

  void merge_parts() {
    for_each_item(threads_, cache_.num_sequences * cache_.num_heads, [&](int64_t item, int) {
      const int64_t b = item / cache_.num_heads, head = item % cache_.num_heads;
      for (int64_t row = 0; row < num_rows_; ++row) merge_row(b, head, row);
    });
  }

  void merge_row(int64_t b, int64_t head, int64_t row) {
    RowSoftmax total;
    float sums[kMostChannels] = {};
    const int64_t end = row < tasks_.rows_of(b) ? tasks_.first_part(b + 1) : 0;
    for (int64_t part = tasks_.first_part(b); part < end; ++part) {
      const int64_t at = (part * cache_.num_heads + head) * num_rows_ + row;
      const RowSoftmax& state = states_[at];
      if (state.sum == 0.0f) continue;  // saw nothing; its output may never have been written
      total.merge(state, outputs_ + at * D_, D_, sums);
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
  DecodeTasks tasks_;
  int64_t D_, group_size_, num_rows_, padded_rows_;
  RowSoftmax* states_ = nullptr;  // [parts, Hkv, rows]
  float* outputs_ = nullptr;      // [parts, Hkv, rows, D] weighted sums
  PiecePerThread<char> workers_;  // memory of each
};

}  // namespace

void decode_attention(const DecodeAttentionParams& params, const Threads& threads) {
  with_dtype(params.cache.dtype, [&](auto element) { Decode<decltype(element)>(params, threads).run(); });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
