// Forward: one sweep over the vocabulary per superblock of positions. Compiled once per instruction-set level.
#include "tokcore/cpu/online_softmax.h"
#include "tokcore/cpu/prefetch.h"
#include "tokcore/cpu/topk.h"
#include "tokcore/cross_entropy/logits_tiles.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

// Partial statistics of the positions of a superblock over one vocabulary block.
struct PartialStatistics {
  float* maximum;    // [kSuperblock]
  float* sum;        // [kSuperblock]
  float* weighted;   // [kSuperblock] for the entropy
  float* logit_sum;  // [kSuperblock]

  static constexpr int kCount = 4;
  static PartialStatistics at(float* base, int64_t vocab_block) {
    float* block = base + vocab_block * kCount * kSuperblock;
    return {block, block + kSuperblock, block + 2 * kSuperblock, block + 3 * kSuperblock};
  }
};

// The k best of every position of a superblock that one worker has seen, and the value to beat. That value is shared: k
// values at or above it, seen by whomever, prove that nothing below it is among the best. Whether a worker sees the
// others' latest changes how many candidates it ranks, never the result.
struct TopKeys {
  RankKey* keys;     // [kSuperblock, topk], the worker's own
  float* threshold;  // [kSuperblock], shared
  void raise_threshold(int64_t at, float value) const {
    if (value <= threshold[at]) return;
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    __atomic_store_n(reinterpret_cast<uint32_t*>(threshold + at), bits, __ATOMIC_RELAXED);
  }
};

// Where the statistics of one tile go.
struct StatisticsTarget {
  PartialStatistics statistics;
  uint16_t* tile_maximum;  // [32] of this tile and panel, or null
  TopKeys top;             // or null keys
  IndexBuckets::Range indices;
  int64_t panel_offset;  // first position of the panel in the superblock
  int lanes;
  int rows;           // inside the vocabulary
  int64_t vocab_row;  // of the tile's first row
};

// Folds tiles of logits into the statistics of their positions.
class TileStatistics : public WovenWork<TileStatistics, StatisticsTarget> {
 public:
  explicit TileStatistics(const LinearLogprobsForwardParams& params)
      : params_(params), transform_(params), identity_(transform_.is_identity()) {}

  int num_portions(const StatisticsTarget& target) const { return transform_portions(target) + 2 * kRowPortions + 2; }

  void run(float* tile, const StatisticsTarget& target, int portion) {
    tile_ = tile;
    const int transforms = transform_portions(target);
    if (portion < transforms) return transform_rows(target, portion * kRowsPerPortion);
    portion -= transforms;
    if (portion < kRowPortions) return take_maximum(portion * kRowsPerPortion);
    if (portion == kRowPortions) return raise_maximum(target);
    portion -= kRowPortions + 1;
    if (portion < kRowPortions) return add_rows(target, portion * kRowsPerPortion);
    store(target);
  }

 private:
  static constexpr int kRowsPerPortion = 2;
  static constexpr int kRowPortions = kBlock / kRowsPerPortion;

  int transform_portions(const StatisticsTarget& target) const {
    return identity_ && target.rows == kBlock ? 0 : kRowPortions;
  }
  float* row(int r) const { return tile_ + r * kBlock; }

  void transform_rows(const StatisticsTarget& target, int first) {
    for (int r = first; r < first + kRowsPerPortion; ++r) {
      for (int i = 0; i < kVecsPerRow; ++i) {
        float* cells = row(r) + i * Vec::kLanes;
        const bool inside = r < target.rows;
        (inside ? transform_.logit(Vec::load(cells), target.vocab_row + r) : Vec(-__builtin_inff())).store(cells);
      }
    }
  }

  void take_maximum(int first) {
    for (int i = 0; i < kVecsPerRow; ++i) {
      if (first == 0) maximum_[i] = Vec(-__builtin_inff());
      for (int r = first; r < first + kRowsPerPortion; ++r) {
        maximum_[i] = max(Vec::load(row(r) + i * Vec::kLanes), maximum_[i]);
      }
    }
  }

  void raise_maximum(const StatisticsTarget& target) {
    const PartialStatistics& statistics = target.statistics;
    for (int i = 0; i < kVecsPerRow; ++i) {
      const int64_t at = target.panel_offset + i * Vec::kLanes;
      carried_[i].maximum = Vec::load(statistics.maximum + at);
      carried_[i].sum = Vec::load(statistics.sum + at);
      if (params_.wants_entropy) carried_[i].weighted = Vec::load(statistics.weighted + at);
      if (target.tile_maximum != nullptr) store_upper_bound(maximum_[i], target.tile_maximum + i * Vec::kLanes);
      carried_[i].raise_maximum(maximum_[i]);
      state_[i] = SoftmaxState();
      state_[i].maximum = carried_[i].maximum;
      logit_sum_[i] = Vec(0.0f);
    }
  }

  void add_rows(const StatisticsTarget& target, int first) {
    for (int i = 0; i < kVecsPerRow; ++i) {
      SoftmaxState state = state_[i];
      const float* cells = row(first) + i * Vec::kLanes;
      if (params_.wants_entropy) {
        for (int r = 0; r < kRowsPerPortion; ++r) state.add_with_entropy(Vec::load(cells + r * kBlock));
      } else {
        for (int r = 0; r < kRowsPerPortion; ++r) state.add(Vec::load(cells + r * kBlock));
      }
      state_[i] = state;
    }
    if (params_.wants_logit_sum) add_logits(target, first);
  }

  void add_logits(const StatisticsTarget& target, int first) {
    for (int r = first; r < first + kRowsPerPortion && r < target.rows; ++r) {
      const Vec weight(params_.class_weight != nullptr ? params_.class_weight[target.vocab_row + r] : 1.0f);
      for (int i = 0; i < kVecsPerRow; ++i) {
        logit_sum_[i] = fma(weight, Vec::load(row(r) + i * Vec::kLanes), logit_sum_[i]);
      }
    }
  }

  void store(const StatisticsTarget& target) {
    const PartialStatistics& statistics = target.statistics;
    for (int i = 0; i < kVecsPerRow; ++i) {
      const int64_t at = target.panel_offset + i * Vec::kLanes;
      state_[i].maximum.store(statistics.maximum + at);
      (carried_[i].sum + state_[i].sum).store(statistics.sum + at);
      if (params_.wants_entropy) (carried_[i].weighted + state_[i].weighted).store(statistics.weighted + at);
      if (params_.wants_logit_sum)
        (Vec::load(statistics.logit_sum + at) + logit_sum_[i]).store(statistics.logit_sum + at);
    }
    for (const IndexBuckets::Entry* entry = target.indices.first; entry != target.indices.last; ++entry) {
      const int64_t position = params_.active_positions[entry->active];
      params_.gathered[position * params_.num_indices + entry->k] = tile_[entry->cell];
    }
    if (target.top.keys != nullptr) {
      for (int i = 0; i < kVecsPerRow; ++i) rank_lanes(target, i);
    }
  }

  // Only lanes whose tile maximum reaches the value to beat are looked at; a NaN has left its mark in the sum.
  void rank_lanes(const StatisticsTarget& target, int i) {
    const int64_t at = target.panel_offset + i * Vec::kLanes;
    const float* thresholds = target.top.threshold + at;
    const int lanes = target.lanes - i * Vec::kLanes;
    if (lanes <= 0) return;
    const uint32_t present = lanes >= Vec::kLanes ? ~0u : (1u << lanes) - 1;
    const uint32_t has_nan = is_nan(state_[i].sum).to_bits();
    const uint32_t reached = not_less(maximum_[i], Vec::load(thresholds)).to_bits() | has_nan;
    if ((reached & present) == 0) return;
    // Most rows hold no candidate: four are looked at together, by their maximum, which a NaN must not hide.
    constexpr int kTogether = 4;
    const Vec threshold = Vec::load(thresholds);
    for (int r = 0; r < target.rows; r += kTogether) {
      const float* cells = row(r) + i * Vec::kLanes;
      const Vec a = Vec::load(cells), b = Vec::load(cells + kBlock);
      const Vec c = Vec::load(cells + 2 * kBlock), d = Vec::load(cells + 3 * kBlock);
      const uint32_t any = not_less(max(max(a, b), max(c, d)), threshold).to_bits() | has_nan;
      if ((any & reached & present) == 0) continue;
      for (int next = r; next < min(r + kTogether, target.rows); ++next) {
        const float* values = row(next) + i * Vec::kLanes;
        uint32_t candidates = not_less(Vec::load(values), Vec::load(thresholds)).to_bits() & reached & present;
        for (; candidates != 0; candidates &= candidates - 1) rank(target, at, values, next, __builtin_ctz(candidates));
      }
    }
  }
  void rank(const StatisticsTarget& target, int64_t at, const float* values, int r, int lane) {
    RankKey* keys = target.top.keys + (at + lane) * params_.topk;
    insert_ranked(keys, params_.topk, rank_key(values[lane], static_cast<uint32_t>(target.vocab_row + r)));
    const RankKey last = keys[params_.topk - 1];
    if (last != 0) target.top.raise_threshold(at + lane, value_of(last));
  }

  const LinearLogprobsForwardParams& params_;
  LogitTransform transform_;
  bool identity_;
  float* tile_ = nullptr;
  Vec maximum_[kVecsPerRow];
  Vec logit_sum_[kVecsPerRow];
  // A tile is summed from zero and then joins what came before: a sum that has reached 1 no longer feels the addition
  // of single small terms.
  SoftmaxState carried_[kVecsPerRow];
  SoftmaxState state_[kVecsPerRow];
};

template <class Engine, class T>
class Forward {
 public:
  using Operand = typename Engine::Operand;

  Forward(const LinearLogprobsForwardParams& params, const Threads& threads)
      : params_(params),
        threads_(threads),
        padded_size_(round_up(params.hidden_size, kBlock)),
        rows_at_once_(row_blocks_in_l2<Engine>(params.hidden_size, kTilesPerVocabBlock) * kBlock),
        num_vocab_blocks_(ceil_div(params.vocab_size, kVocabBlock)),
        num_vocab_tiles_(ceil_div(params.vocab_size, kBlock)),
        filters_(params.kept != nullptr) {}

  void run() {
    Arena measure;
    plan(measure);
    Scratch scratch(measure.used());
    Arena arena(scratch.data());
    plan(arena);
    buckets_.build(params_);
    const int64_t num_superblocks = ceil_div(params_.num_active, kSuperblock);
    for (int64_t i = 0; i < num_superblocks; ++i) run_superblock(superblock_at(params_, i));
  }

 private:
  void plan(Arena& arena) {
    panels_ = arena.take<Operand>(min(kSuperblock, round_up(params_.num_active, kBlock)) * padded_size_);
    partials_ = arena.take<float>(num_vocab_blocks_ * PartialStatistics::kCount * kSuperblock);
    tile_maxima_ = arena.take<uint16_t>(filters_ ? num_vocab_tiles_ * kSuperblock : 0);
    tiles_ = arena.take_per_thread<float>(threads_.count, TileGroups::kElements);
    vocab_rows_ = arena.take_per_thread<Operand>(threads_.count,
                                                 VocabRows<Engine, T>::elements(rows_at_once_, params_.hidden_size));
    top_keys_ = arena.take<RankKey>(threads_.count * kSuperblock * params_.topk);
    top_thresholds_ = arena.take<float>(params_.topk > 0 ? kSuperblock : 0);
    buckets_.plan(arena, params_);
  }

  void run_superblock(const Superblock& superblock) {
    for_each_item(threads_, superblock.num_panels(), [&](int64_t panel, int) {
      Engine::pack_transposed(PanelRows<T>(params_, superblock, panel).rows, params_.hidden_size,
                              panels_ + panel * kBlock * padded_size_);
    });
    for (int64_t i = 0; i < threads_.count * kSuperblock * params_.topk; ++i) top_keys_[i] = 0;
    for (int64_t i = 0; params_.topk > 0 && i < kSuperblock; ++i) top_thresholds_[i] = -__builtin_inff();
    for_each_item(
        threads_, num_vocab_blocks_,
        [&](int64_t vocab_block, int worker) { sweep_vocab_block(superblock, vocab_block, worker); },
        [](int, auto&& run) {
          [[maybe_unused]] typename Engine::WorkerState state;
          run();
        });
    for_each_item(threads_, superblock.num_panels(), [&](int64_t panel, int) { merge_panel(superblock, panel); });
    if (filters_) {
      for_each_item(threads_, num_vocab_blocks_, [&](int64_t block, int) { keep_tiles(superblock, block); });
      keep_top(superblock);
    }
  }

  TopKeys top_of(int worker) const {
    if (params_.topk == 0) return {nullptr, nullptr};
    return {top_keys_ + worker * kSuperblock * params_.topk, top_thresholds_};
  }

  void sweep_vocab_block(const Superblock& superblock, int64_t vocab_block, int worker) {
    const PartialStatistics statistics = PartialStatistics::at(partials_, vocab_block);
    for (int64_t i = 0; i < superblock.num_panels() * kBlock; ++i) {
      statistics.maximum[i] = -kFarthest;
      statistics.sum[i] = statistics.weighted[i] = statistics.logit_sum[i] = 0.0f;
    }
    const TileGroups groups = {tiles_[worker]};
    const VocabRows<Engine, T> rows(vocab_rows_[worker], params_.hidden_size);
    const int num_steps = static_cast<int>(padded_size_ / kBlock);
    TileStatistics work(params_);
    int parity = 0;
    const int64_t end = min((vocab_block + 1) * kVocabBlock, params_.vocab_size);
    for (int64_t first_row = vocab_block * kVocabBlock; first_row < end; first_row += rows_at_once_) {
      const int64_t num_tiles = ceil_div(min(end - first_row, rows_at_once_), kBlock);
      for (int64_t i = 0; i < num_tiles; ++i) rows.pack(params_, first_row + i * kBlock, i);
      Prefetcher prefetch_rows;
      for (int64_t panel = 0; panel < superblock.num_panels(); ++panel) {
        const bool last_rows = first_row + rows_at_once_ >= end;
        if (last_rows && panel == superblock.num_panels() / 2)
          prefetch_rows = next_rows(superblock, vocab_block, num_tiles * num_steps);
        const bool last = panel + 1 == superblock.num_panels();
        const int64_t panel_elements = kBlock * padded_size_;
        Prefetcher prefetch_panel(panels_ + (last ? 0 : panel + 1) * panel_elements,
                                  panel_elements * static_cast<int64_t>(sizeof(Operand)), num_tiles * num_steps);
        for (int64_t tile = 0; tile < num_tiles; tile += kGroup) {
          const int count = static_cast<int>(min(num_tiles - tile, kGroup));
          TileGroup group = groups[parity];
          RowOperand<Operand> blocks[kGroup];
          StatisticsTarget targets[kGroup];
          for (int i = 0; i < count; ++i) {
            blocks[i] = rows.block(tile + i);
            const int64_t vocab_tile = first_row / kBlock + tile + i;
            targets[i] = target_of(superblock, panel, vocab_tile, statistics, worker);
            if (params_.stored_logits != nullptr) {
              group.tiles[i] = params_.stored_logits + (vocab_tile * superblock.num_panels() + panel) * kTileElements;
            }
          }
          const bool backwards = tile / kGroup % 2 == 1;
          multiply_blocks<Engine>(blocks, group.tiles, count, panels_ + panel * panel_elements, {nullptr, 0, num_steps},
                                  false, backwards, [&] {
                                    work.advance();
                                    prefetch_panel();
                                    prefetch_rows();
                                  });
          work.finish();
          work.start(group, targets, count, int64_t{count} * num_steps);
          parity ^= 1;
        }
      }
    }
    work.finish();
  }

  // The rows of c this worker will most likely pack next, spread over the second half of a block's last panels.
  Prefetcher next_rows(const Superblock& superblock, int64_t vocab_block, int64_t steps_per_panel) const {
    constexpr int64_t kFewestPanels = 8;  // with fewer, reading c is all there is to do
    const int64_t next = vocab_block + threads_.count;
    const bool dense = params_.stride_c_row == params_.hidden_size;
    if (next >= num_vocab_blocks_ || !dense || superblock.num_panels() < kFewestPanels) return {};
    const int64_t num_rows = min(params_.vocab_size - next * kVocabBlock, rows_at_once_);
    return {static_cast<const T*>(params_.c) + next * kVocabBlock * params_.hidden_size,
            num_rows * params_.hidden_size * static_cast<int64_t>(sizeof(T)),
            superblock.num_panels() / 2 * steps_per_panel};
  }

  StatisticsTarget target_of(const Superblock& superblock, int64_t panel, int64_t vocab_tile,
                             const PartialStatistics& statistics, int worker) const {
    StatisticsTarget target;
    target.statistics = statistics;
    target.tile_maximum = filters_ ? tile_maxima_ + vocab_tile * kSuperblock + panel * kBlock : nullptr;
    target.top = top_of(worker);
    target.indices = buckets_.in_panel(vocab_tile, superblock.first + panel * kBlock);
    target.panel_offset = panel * kBlock;
    target.lanes = static_cast<int>(superblock.lanes(panel));
    target.vocab_row = vocab_tile * kBlock;
    target.rows = static_cast<int>(min(params_.vocab_size - target.vocab_row, kBlock));
    return target;
  }

  // Partial statistics are merged in vocabulary order, whoever computed them.
  void merge_panel(const Superblock& superblock, int64_t panel) {
    float sum[kBlock], maximum[kBlock], weighted[kBlock], logit_sum[kBlock];
    for (int i = 0; i < kBlock; i += Vec::kLanes) {
      SoftmaxState state;
      Vec logits(0.0f);
      for (int64_t block = 0; block < num_vocab_blocks_; ++block) {
        const PartialStatistics partial = PartialStatistics::at(partials_, block);
        const int64_t at = panel * kBlock + i;
        state.merge({Vec::load(partial.maximum + at), Vec::load(partial.sum + at), Vec::load(partial.weighted + at)});
        logits += Vec::load(partial.logit_sum + at);
      }
      state.maximum.store(maximum + i);
      state.sum.store(sum + i);
      state.weighted.store(weighted + i);
      logits.store(logit_sum + i);
    }
    for (int64_t lane = 0; lane < superblock.lanes(panel); ++lane) {
      const int64_t position = params_.active_positions[superblock.first + panel * kBlock + lane];
      const float log_sum = static_cast<float>(__builtin_log(static_cast<double>(sum[lane])));
      params_.lse[position] = maximum[lane] + log_sum;
      if (params_.wants_entropy) params_.entropy[position] = log_sum - weighted[lane] / sum[lane];
      if (params_.wants_logit_sum) params_.logit_sum[position] = logit_sum[lane];
      if (params_.topk > 0) merge_top(panel * kBlock + lane, position);
    }
  }

  void merge_top(int64_t at, int64_t position) {
    RankKey* best = top_keys_ + at * params_.topk;
    for (int worker = 1; worker < threads_.count; ++worker) {
      const RankKey* others = top_of(worker).keys + at * params_.topk;
      for (int64_t i = 0; i < params_.topk; ++i) insert_ranked(best, params_.topk, others[i]);
    }
    for (int64_t i = 0; i < params_.topk; ++i) {
      params_.topk_values[position * params_.topk + i] = value_of(best[i]);
      params_.topk_indices[position * params_.topk + i] = index_of(best[i]);
    }
  }

  uint32_t* kept_word(const Superblock& superblock, int64_t vocab_tile, int64_t panel) const {
    return params_.kept + vocab_tile * params_.kept_words + superblock.first / kBlock + panel;
  }

  // A tile survives unless its greatest logit, rounded up, is below the threshold: a NaN survives.
  void keep_tiles(const Superblock& superblock, int64_t vocab_block) {
    const int64_t last = min((vocab_block + 1) * kTilesPerVocabBlock, num_vocab_tiles_);
    for (int64_t tile = vocab_block * kTilesPerVocabBlock; tile < last; ++tile) {
      for (int64_t panel = 0; panel < superblock.num_panels(); ++panel) {
        const uint16_t* maxima = tile_maxima_ + tile * kSuperblock + panel * kBlock;
        float lse[kBlock];
        for (int64_t lane = 0; lane < kBlock; ++lane) {
          const bool present = lane < superblock.lanes(panel);
          lse[lane] = present ? params_.lse[params_.active_positions[superblock.first + panel * kBlock + lane]]
                              : __builtin_inff();
        }
        uint32_t bits = 0;
        for (int i = 0; i < kBlock; i += Vec::kLanes) {
          const Vec bound = Vec::load(reinterpret_cast<const BFloat16*>(maxima + i));
          bits |= not_less(bound - Vec::load(lse + i), Vec(params_.filter_log_eps)).to_bits() << i;
        }
        const IndexBuckets::Range indices = buckets_.in_panel(tile, superblock.first + panel * kBlock);
        for (const IndexBuckets::Entry* entry = indices.first; entry != indices.last; ++entry) {
          bits |= 1u << (entry->cell % kBlock);
        }
        const int64_t lanes = superblock.lanes(panel);
        *kept_word(superblock, tile, panel) = lanes == kBlock ? bits : bits & ((1u << lanes) - 1);
      }
    }
  }

  void keep_top(const Superblock& superblock) {
    for (int64_t i = 0; i < superblock.count; ++i) {
      const int64_t position = params_.active_positions[superblock.first + i];
      for (int64_t k = 0; k < params_.topk; ++k) {
        const int64_t vocab_tile = params_.topk_indices[position * params_.topk + k] / kBlock;
        *kept_word(superblock, vocab_tile, i / kBlock) |= 1u << (i % kBlock);
      }
    }
  }

  const LinearLogprobsForwardParams& params_;
  const Threads& threads_;
  int64_t padded_size_, rows_at_once_, num_vocab_blocks_, num_vocab_tiles_;
  bool filters_;
  Operand* panels_ = nullptr;           // [panels][padded_size, 32] packed rows of e
  float* partials_ = nullptr;           // [vocab blocks][kCount][kSuperblock]
  uint16_t* tile_maxima_ = nullptr;     // [vocab tiles][kSuperblock] upper halves of fp32, rounded up
  PiecePerThread<float> tiles_;         // [2 groups][kGroup][32, 32]
  PiecePerThread<Operand> vocab_rows_;  // [rows_at_once, row stride]
  RankKey* top_keys_ = nullptr;         // [workers][kSuperblock, topk]
  float* top_thresholds_ = nullptr;     // [kSuperblock]
  IndexBuckets buckets_;
};

}  // namespace

void linear_logprobs_forward(const LinearLogprobsForwardParams& params, const Threads& threads) {
  switch (params.dtype) {
    case DType::kFloat32:
      return Forward<EngineOf<float>::type, float>(params, threads).run();
    case DType::kFloat16:
      return Forward<EngineOf<Float16>::type, Float16>(params, threads).run();
    case DType::kBFloat16:
      return Forward<EngineOf<BFloat16>::type, BFloat16>(params, threads).run();
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
