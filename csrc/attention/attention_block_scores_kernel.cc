// Block statistics of attention weights: each block of queries passes over all keys it sees. Of every query and block
// of keys the pass keeps the greatest score and the sum of exponentials relative to it; with the query's own total
// these give every statistic but the count, which needs a second pass. Compiled once per instruction-set level.
#include "tokcore/attention/attention_block_scores.h"

#include "tokcore/attention/tile_softmax.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/cpu/subnormals.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

// One worker's scratch.
template <class Operand>
struct WorkSpace {
  Operand* queries;   // [D steps] panel of Q^T
  float* tiles;       // [32][2][64] two tiles of scores side by side
  float* maximum;     // [blocks of keys][32] greatest score q k^T
  float* sum;         // [blocks of keys][32] sum of exp(scale (score - maximum))
  float* total;       // [32] sum of exp(scale (score - highest)) over all keys
  float* highest;     // [32] greatest score
  float* log_weight;  // [blocks of keys] log2 of the greatest weight so far, for the incoherence
  float* weight_sum;  // [blocks of keys] sum of weights relative to it
  float* counted;     // [blocks of keys] elements that count
};

template <class Engine, class T>
class BlockScores {
 public:
  using Operand = typename Engine::Operand;

  BlockScores(const AttentionBlockScoresParams& params, const Threads& threads)
      : params_(params),
        threads_(threads),
        factor_(params.scale * kLog2E),
        head_steps_(ceil_div(params.shape.head_dim, kBlock)),
        keys_in_place_(RowTiles<Engine, T>::can_read_in_place(params.k, params.shape.head_dim)),
        num_rows_(ceil_div(params.shape.query_length, params.block_m)),
        num_columns_(ceil_div(params.shape.key_length, params.block_n)),
        key_elements_(RowTiles<Engine, T>::elements(params.shape.key_length, params.shape.head_dim, keys_in_place_)) {}

  void run() {
    Arena measure;
    plan(measure);
    Scratch scratch(measure.used());
    Arena arena(scratch.data());
    plan(arena);
    const AttentionShape& shape = params_.shape;
    for (int64_t pair = 0; pair < shape.batch * shape.num_kv_heads; ++pair) run_pair(pair);
  }

 private:
  void plan(Arena& arena) {
    packed_keys_ = arena.take<Operand>(key_elements_);
    spaces_ = arena.take<WorkSpace<Operand>>(threads_.count);
    for (int i = 0; i < threads_.count; ++i) {
      arena.separate_threads();
      WorkSpace<Operand> space;
      space.queries = arena.take<Operand>(head_steps_ * kTileCells);
      space.tiles = arena.take<float>(kBlock * kScoreStride);
      space.maximum = arena.take<float>(num_columns_ * kBlock);
      space.sum = arena.take<float>(num_columns_ * kBlock);
      space.total = arena.take<float>(kBlock);
      space.highest = arena.take<float>(kBlock);
      space.log_weight = arena.take<float>(num_columns_);
      space.weight_sum = arena.take<float>(num_columns_);
      space.counted = arena.take<float>(num_columns_);
      if (spaces_ != nullptr) spaces_[i] = space;
    }
  }

  void run_pair(int64_t pair) {
    const AttentionShape& shape = params_.shape;
    const int64_t batch = pair / shape.num_kv_heads, kv_head = pair % shape.num_kv_heads;
    keys_ = {rows_of_head<T>(params_.k, batch, kv_head, shape.key_length, shape.head_dim), keys_in_place_,
             packed_keys_};
    constexpr int64_t kTilesPerItem = 8;
    const int64_t tiles = ceil_div(shape.key_length, kBlock);
    for_each_item(threads_, ceil_div(tiles, kTilesPerItem), [&](int64_t item, int) {
      for (int64_t tile = item * kTilesPerItem; tile < min((item + 1) * kTilesPerItem, tiles); ++tile) keys_.pack(tile);
    });
    const int64_t group = shape.group_size();
    for_each_item(
        threads_, group * num_rows_,
        [&](int64_t item, int worker) {
          // With `causal` the last rows are the longest: they come first.
          run_row(spaces_[worker], batch, kv_head * group + item / num_rows_, num_rows_ - 1 - item % num_rows_);
        },
        [](int, auto&& run) {
          [[maybe_unused]] typename Engine::WorkerState state;
          const SubnormalsAsZero subnormals;
          run();
        });
  }

  void run_row(const WorkSpace<Operand>& space, int64_t batch, int64_t head, int64_t row) {
    const AttentionShape& shape = params_.shape;
    float* scores = params_.scores + ((batch * shape.num_heads + head) * num_rows_ + row) * num_columns_;
    for (int64_t column = 0; column < num_columns_; ++column) {
      scores[column] = 0.0f;
      space.log_weight[column] = -__builtin_inff();
      space.weight_sum[column] = space.counted[column] = 0.0f;
    }
    const int64_t end = min((row + 1) * params_.block_m, shape.query_length);
    const Rows<T> queries = rows_of_head<T>(params_.q, batch, head, shape.query_length, shape.head_dim);
    for (int64_t first = row * params_.block_m; first < end; first += kBlock) {
      const T* pointers[kBlock];
      queries.tile(first / kBlock, pointers);
      Engine::pack_transposed(pointers, shape.head_dim, space.queries);
      const int64_t lanes = min(end - first, kBlock);
      for (int64_t i = 0; i < num_columns_ * kBlock; i += Vec::kLanes) {
        Vec(-__builtin_inff()).store(space.maximum + i);
        Vec(0.0f).store(space.sum + i);
      }
      for_each_tile(space, first, lanes, [&](float* tile, int64_t column) { sum_tile(space, tile, column); });
      total_up(space);
      if (params_.statistic == BlockStatistic::kCountAbove) {
        set_limits(space);
        for_each_tile(space, first, lanes,
                      [&](float* tile, int64_t column) { scores[column] += count_above(space, tile, lanes); });
      } else {
        for (int64_t column = 0; column < num_columns_; ++column) {
          add_block(space, column, first, lanes, scores + column);
        }
      }
    }
    if (params_.statistic != BlockStatistic::kIncoherence) return;
    for (int64_t column = 0; column < num_columns_; ++column) {
      scores[column] = space.counted[column] > 0.0f ? space.counted[column] / space.weight_sum[column] : 0.0f;
    }
  }

  // Makes the tiles of scores that a panel of queries sees; visit(tile, block of keys) works on one while the next is
  // being made.
  template <class Visit>
  void for_each_tile(const WorkSpace<Operand>& space, int64_t first_query, int64_t lanes, Visit&& visit) {
    const AttentionShape& shape = params_.shape;
    const int64_t seen = params_.causal ? first_query + lanes + shape.causal_offset() : shape.key_length;
    const int64_t num_tiles = ceil_div(max(min(seen, shape.key_length), 0), kBlock);
    auto finish = [&](int64_t tile) {
      float* cells = space.tiles + tile % 2 * kBlock;
      const TileBounds bounds = TileBounds::of(shape, params_.causal, first_query, tile);
      for (int row = 0; bounds.cuts() && row < kBlock; ++row) bounds.clear(cells, row);
      visit(cells, tile * kBlock / params_.block_n);
    };
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      Engine::multiply(keys_[tile], space.queries, {nullptr, 0, static_cast<int>(head_steps_)}, false,
                       space.tiles + tile % 2 * kBlock, NoStep(), kScoreStride);
      if (tile > 0) finish(tile - 1);
    }
    if (num_tiles > 0) finish(num_tiles - 1);
  }

  // References are kept inside [-kFarthest, kFarthest], so that no difference of them is NaN.
  static Vec bounded(Vec score) { return min(Vec(kFarthest), max(Vec(-kFarthest), score)); }

  void sum_tile(const WorkSpace<Operand>& space, const float* tile, int64_t column) const {
    for (int i = 0; i < kVecsPerRow; ++i) {
      const float* cells = tile + i * Vec::kLanes;
      float* maximum = space.maximum + column * kBlock + i * Vec::kLanes;
      float* sum = space.sum + column * kBlock + i * Vec::kLanes;
      const Vec before = Vec::load(maximum);
      Vec highest = before;
      for (int row = 0; row < kBlock; ++row) highest = max(Vec::load(cells + row * kScoreStride), highest);
      const Vec reference = bounded(highest);
      Vec added(0.0f);
      constexpr int kTogether = Vec::kLanes == 16 ? 8 : 4;
      for (int row = 0; row < kBlock; row += kTogether) {
        Vec weights[kTogether];
#pragma GCC unroll 8
        for (int n = 0; n < kTogether; ++n) {
          weights[n] = (Vec::load(cells + (row + n) * kScoreStride) - reference) * Vec(factor_);
        }
        exp2<false>(weights);
#pragma GCC unroll 8
        for (int n = 0; n < kTogether; ++n) added += weights[n];
      }
      highest.store(maximum);
      fma(Vec::load(sum), exp2((bounded(before) - reference) * Vec(factor_)), added).store(sum);
    }
  }

  void total_up(const WorkSpace<Operand>& space) const {
    for (int i = 0; i < kVecsPerRow; ++i) {
      const int64_t lane = i * Vec::kLanes;
      Vec highest(-__builtin_inff());
      for (int64_t column = 0; column < num_columns_; ++column) {
        highest = max(Vec::load(space.maximum + column * kBlock + lane), highest);
      }
      highest = bounded(highest);
      Vec total(0.0f);
      for (int64_t column = 0; column < num_columns_; ++column) {
        const int64_t at = column * kBlock + lane;
        const Vec shrink = exp2((bounded(Vec::load(space.maximum + at)) - highest) * Vec(factor_));
        total = fma(Vec::load(space.sum + at), shrink, total);
      }
      // A score of +inf makes its whole row NaN.
      total = select(total < Vec(__builtin_inff()), total, Vec(__builtin_nanf("")));
      highest.store(space.highest + lane);
      total.store(space.total + lane);
    }
  }

  // What the panel's queries add to one block.
  void add_block(const WorkSpace<Operand>& space, int64_t column, int64_t first_query, int64_t lanes,
                 float* score) const {
    float weights[kBlock], sums[kBlock];
    for (int i = 0; i < kVecsPerRow; ++i) {
      const int64_t lane = i * Vec::kLanes, at = column * kBlock + lane;
      const Vec total = Vec::load(space.total + lane);
      const Vec nothing = zero_unless(is_nan(total), total);  // 0 for a query that sees no key
      const Vec weight = exp2((Vec::load(space.maximum + at) - Vec::load(space.highest + lane)) * Vec(factor_)) / total;
      const Vec relative =
          exp2((bounded(Vec::load(space.maximum + at)) - Vec::load(space.highest + lane)) * Vec(factor_));
      const Mask sees = Vec(0.0f) < total;
      select(sees, weight, nothing).store(weights + lane);
      select(sees, Vec::load(space.sum + at) * relative / total, nothing).store(sums + lane);
    }
    switch (params_.statistic) {
      case BlockStatistic::kSum:
        for (int64_t i = 0; i < lanes; ++i) *score += sums[i];
        break;
      case BlockStatistic::kMax:
        for (int64_t i = 0; i < lanes; ++i)
          *score = weights[i] > *score || weights[i] != weights[i] ? weights[i] : *score;
        break;
      default:
        add_incoherence(space, column, first_query, lanes);
    }
  }

  // Greatest weight and sum in logarithms, so that a block of tiny weights has its quotient too.
  void add_incoherence(const WorkSpace<Operand>& space, int64_t column, int64_t first_query, int64_t lanes) const {
    const AttentionShape& shape = params_.shape;
    const int64_t first_key = column * params_.block_n;
    for (int64_t i = 0; i < lanes; ++i) {
      const int64_t seen = params_.causal ? first_query + i + 1 + shape.causal_offset() : shape.key_length;
      const int64_t end = min(min(seen, shape.key_length), first_key + params_.block_n);
      if (end <= first_key) continue;
      space.counted[column] += static_cast<float>(end - first_key);
      const float maximum = space.maximum[column * kBlock + i], sum = space.sum[column * kBlock + i];
      const float weight = (maximum - space.highest[i]) * factor_ - __builtin_log2f(space.total[i]);
      float& greatest = space.log_weight[column];
      float& total = space.weight_sum[column];
      if (weight > greatest) {
        total *= __builtin_exp2f(greatest - weight);
        greatest = weight;
      }
      const float distance = weight == greatest ? 0.0f : weight - greatest;  // -inf - -inf is no distance
      total += sum * __builtin_exp2f(distance);
    }
  }

  // From here on `highest` holds the score that a weight above the threshold exceeds.
  void set_limits(const WorkSpace<Operand>& space) const {
    for (int i = 0; i < kBlock; ++i) {
      const float total = space.total[i];
      const float distance = __builtin_log2f(params_.threshold) + __builtin_log2f(total);
      space.highest[i] = total > 0.0f     ? space.highest[i] + distance / factor_
                         : total != total ? total
                                          : __builtin_inff();
    }
  }
  float count_above(const WorkSpace<Operand>& space, const float* tile, int64_t lanes) const {
    int count = 0;
    for (int i = 0; i < kVecsPerRow; ++i) {
      const uint32_t present = ~lanes_from(lanes, i * Vec::kLanes).to_bits();
      const Vec limit = Vec::load(space.highest + i * Vec::kLanes);
      for (int row = 0; row < kBlock; ++row) {
        const Mask above = limit < Vec::load(tile + row * kScoreStride + i * Vec::kLanes);
        count += __builtin_popcount(above.to_bits() & present);
      }
    }
    return static_cast<float>(count);
  }

  const AttentionBlockScoresParams& params_;
  const Threads& threads_;
  float factor_;
  int64_t head_steps_;
  bool keys_in_place_;
  int64_t num_rows_, num_columns_, key_elements_;
  RowTiles<Engine, T> keys_;
  Operand* packed_keys_ = nullptr;
  WorkSpace<Operand>* spaces_ = nullptr;
};

template <class T>
void run_scores(const AttentionBlockScoresParams& params, const Threads& threads) {
  BlockScores<typename EngineOf<T>::type, T>(params, threads).run();
}

}  // namespace

void attention_block_scores(const AttentionBlockScoresParams& params, const Threads& threads) {
  switch (params.dtype) {
    case DType::kFloat32:
      return run_scores<float>(params, threads);
    case DType::kBFloat16:
      return run_scores<BFloat16>(params, threads);
    case DType::kFloat16:
      return run_scores<Float16>(params, threads);
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
