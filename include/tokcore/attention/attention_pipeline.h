// One worker's stream of query blocks. For a panel of 32 queries and some kept tiles of 32 keys (a unit) it makes, tile
// by tile,
//
//   scores^T = K Q^T    A = rows of K, panel = Q^T     [32 keys][32 queries]
//   weights             TileSoftmax, stored as the panel of the second product
//   out^T += V^T P^T    A = columns of V, panel = P^T  [32 of D][32 queries], once per unit and 32 of D
//
// The three overlap: while the matrix unit makes the scores of one tile and a part of the second product of the unit
// before, the vector units turn the previous tile into weights. The stream does not stop between query blocks.
#pragma once

#include "tokcore/attention/tile_softmax.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/cpu/transpose.h"

namespace tokcore::cpu::TOKCORE_ISA {

// The keys and values of one head, shared by all query blocks that need them.
template <class Engine, class T>
struct KeyValueTiles {
  RowTiles<Engine, T> keys;
  TransposedTiles<Engine, T> values;
};

template <class Engine, class T>
class AttentionPipeline {
 public:
  using Operand = typename Engine::Operand;

  AttentionPipeline(const BlockSparseAttentionForwardParams& params, Arena& arena)
      : params_(params),
        softmax_(params.scale),
        head_steps_(ceil_div(params.shape.head_dim, kBlock)),
        unit_tiles_(unit_tiles(params.shape.head_dim)) {
    const int64_t panels = params.mask.block_m / kBlock;
    const int64_t tiles = ceil_div(params.shape.key_length, kBlock);
    for (Context& context : contexts_) {
      context.queries = arena.take<Operand>(panels * head_steps_ * kTileCells);
      context.sums = arena.take<float>(panels * head_steps_ * kTileCells);
      context.references = arena.take<float>(panels * kBlock);
      context.weight_sums = arena.take<float>(panels * kBlock);
      context.tiles = arena.take<int32_t>(tiles);
    }
    for (Operand*& panel : weights_) panel = arena.take<Operand>(unit_tiles_ * kTileCells);
    scores_[0] = arena.take<float>(2 * kTileCells);
    scores_[1] = scores_[0] + kBlock;
  }

  // Starts one query block; its results are written some units later, at the latest by drain().
  void run(const KeyValueTiles<Engine, T>& head_tiles, int64_t batch, int64_t head, int64_t block_row) {
    Context& context = contexts_[next_context_];
    const AttentionShape& shape = params_.shape;
    context.head_tiles = &head_tiles;
    context.batch = batch;
    context.head = head;
    context.first_row = block_row * params_.mask.block_m;
    context.num_rows = min(shape.query_length - context.first_row, params_.mask.block_m);
    list_tiles(context, params_.mask.row(batch, head, block_row));
    pack_queries(context);
    context.units_left = 0;
    for (int64_t panel = 0; panel < context.num_panels(); ++panel) {
      context.units_left += ceil_div(context.num_tiles[panel], unit_tiles_);
    }
    if (context.units_left == 0) return write_results(context);
    next_context_ = (next_context_ + 1) % kContexts;
    // The panels of a block follow one another on the same keys and values. The last panel sees the most.
    for (int64_t first = 0; first < context.num_tiles[context.num_panels() - 1]; first += unit_tiles_) {
      for (int64_t panel = 0; panel < context.num_panels(); ++panel) {
        if (first < context.num_tiles[panel]) run_unit(context, panel, first);
      }
    }
  }

  // Finishes what is under way.
  void drain() {
    if (!filling_.exists()) return;
    softmax_.prepare();
    finish_weights(0, kEverything);
    ready_ = filling_;
    filling_ = Unit();
    multiply_values(kEverything);
  }

 private:
  // Long units save loads and stores of sums; with large heads their weights would push keys and values out of L2.
  static constexpr int unit_tiles(int64_t head_dim) {
    return static_cast<int>(min(Engine::kStepsPerPass, head_dim <= 64 ? 16 : 8));
  }
  static constexpr int kMostPanels = 4;
  static constexpr int64_t kEverything = INT64_MAX;
  // A block's last products are made in the first stage of the second unit after it, which may belong to the second
  // block after it.
  static constexpr int kContexts = 3;
  using Softmax = TileSoftmax<Engine, sizeof(Operand) == 2>;

  // A query block under way.
  struct Context {
    const KeyValueTiles<Engine, T>* head_tiles;
    int64_t batch, head, first_row, num_rows;
    int64_t units_left;
    int64_t num_tiles[kMostPanels];  // of `tiles` that a panel sees
    bool has_sums[kMostPanels];
    PanelStatistics statistics[kMostPanels];
    Operand* queries;    // [panels][D/32 steps] panels of Q^T
    float* sums;         // [panels][D/32][32][32] out^T before the division
    float* references;   // [panels][32]
    float* weight_sums;  // [panels][32]
    int32_t* tiles;      // kept key tiles, ascending

    int64_t num_panels() const { return ceil_div(num_rows, kBlock); }
  };

  struct Unit {
    Context* context = nullptr;
    int64_t panel = 0;
    const int32_t* tiles = nullptr;  // [count]
    int count = 0;
    Operand* weights = nullptr;  // [count] rows of a panel
    int first_weights = 0;       // tiles before it are in the sums already
    int64_t next_product = 0;    // of the second products: 32 of D each

    bool exists() const { return context != nullptr; }
  };

  void list_tiles(Context& context, const uint32_t* row) {
    const AttentionShape& shape = params_.shape;
    const int64_t block_n = params_.mask.block_n;
    const auto keys_seen = [&](int64_t last_row) {
      const int64_t end = last_row + 1 + shape.causal_offset();
      return params_.causal ? max(min(shape.key_length, end), 0) : shape.key_length;
    };
    const int64_t end = keys_seen(context.first_row + context.num_rows - 1);
    int64_t count = 0;
    for_each_kept_block(row, ceil_div(end, block_n), [&](int64_t column) {
      const int64_t last = min((column + 1) * block_n, end);
      for (int64_t key = column * block_n; key < last; key += kBlock) {
        context.tiles[count++] = static_cast<int32_t>(key / kBlock);
      }
    });
    for (int64_t panel = 0; panel < context.num_panels(); ++panel) {
      const int64_t last_row = min((panel + 1) * kBlock, context.num_rows) - 1;
      const int64_t seen = keys_seen(context.first_row + last_row);
      int64_t visible = count;
      while (visible > 0 && context.tiles[visible - 1] * kBlock >= seen) --visible;
      context.num_tiles[panel] = visible;
      context.has_sums[panel] = false;
      context.statistics[panel] = {context.references + panel * kBlock, context.weight_sums + panel * kBlock, true};
    }
  }

  void pack_queries(const Context& context) {
    const AttentionShape& shape = params_.shape;
    const int64_t first = context.first_row;
    Rows<T> rows = rows_of_head<T>(params_.q, context.batch, context.head, context.num_rows, shape.head_dim);
    rows.data += first * rows.stride;
    for (int64_t panel = 0; panel < context.num_panels(); ++panel) {
      const T* pointers[kBlock];
      rows.tile(panel, pointers);
      Engine::pack_transposed(pointers, shape.head_dim, queries(context, panel));
    }
  }

  Operand* queries(const Context& context, int64_t panel) const {
    return context.queries + panel * head_steps_ * kTileCells;
  }
  float* sums(const Context& context, int64_t panel, int64_t chunk) const {
    return context.sums + (panel * head_steps_ + chunk) * kTileCells;
  }

  void run_unit(Context& context, int64_t panel, int64_t first_tile) {
    Unit unit;
    unit.context = &context;
    unit.panel = panel;
    unit.tiles = context.tiles + first_tile;
    unit.count = static_cast<int>(min(context.num_tiles[panel] - first_tile, unit_tiles_));
    unit.weights = weights_[weights_parity_];
    weights_parity_ ^= 1;
    for (int i = 0; i < unit.count; ++i) run_stage(unit, i);
  }

  // Makes the scores of tile i, the weights of the tile before and a share of the ready unit's second products. Stage 0
  // turns the last tile of the unit before into weights; that unit is ready from stage 1 on, until stage 0 of the next.
  void run_stage(const Unit& unit, int i) {
    // A part of the weights goes between the steps of this product, the rest between those of a second product.
    const bool weighs = filling_.exists();
    const uint32_t end = weighs ? Softmax::kPortions / 2 : 0;
    uint32_t portion = 0;
    if (weighs) softmax_.prepare();
    prefetch(unit, i + 2);
    Engine::multiply(
        unit.context->head_tiles->keys[unit.tiles[i]], queries(*unit.context, unit.panel), whole_head(), false,
        scores_[scores_parity_],
        [&]() __attribute__((always_inline)) {
          if (portion < end) softmax_.add_weights(portion++);
        },
        kScoreStride);
    if (weighs) finish_weights(portion, i == 0 ? kEverything : head_steps_ * i / unit.count);
    if (i == 0) {
      ready_ = filling_;
      filling_ = unit;
    }
    const int64_t first_query = unit.context->first_row + unit.panel * kBlock;
    softmax_.begin(scores_[scores_parity_], TileBounds::of(params_.shape, params_.causal, first_query, unit.tiles[i]),
                   &unit.context->statistics[unit.panel], unit.weights, i);
    filled_ = i;
    scores_parity_ ^= 1;
  }
  // Kept tiles that do not follow one another are beyond the guesses of the processor's own prefetchers.
  void prefetch(const Unit& unit, int i) const {
    if (i >= unit.count || unit.tiles[i] == unit.tiles[i - 2] + 2) return;
    const RowOperand<Operand> keys = unit.context->head_tiles->keys[unit.tiles[i]];
    const RowOperand<Operand> values = unit.context->head_tiles->values.columns(0);
    const Operand* value_tile = values.data + unit.tiles[i] * values.step_stride;
    constexpr int64_t kLine = 64 / sizeof(Operand);
    for (int64_t row = 0; row < kBlock; ++row) {
      for (int64_t column = 0; column < params_.shape.head_dim; column += kLine) {
        __builtin_prefetch(keys.data + row * keys.row_stride + column, 0, 2);
        __builtin_prefetch(value_tile + row * params_.shape.head_dim + column, 0, 2);
      }
    }
  }
  StepList whole_head() const { return {nullptr, 0, static_cast<int>(head_steps_)}; }

  // Makes the weights of the tile that was begun, from a portion on, and meanwhile the ready unit's second products
  // below `products`.
  void finish_weights(uint32_t portion, int64_t products) {
    if (ready_.exists() && ready_.next_product < products) {
      multiply_next([&]() __attribute__((always_inline)) {
        if (portion < Softmax::kPortions) softmax_.add_weights(portion++);
      });
    }
    for (; portion < Softmax::kPortions; ++portion) softmax_.add_weights(portion);
    if (softmax_.exceeds()) {
      raise_references();
      for (portion = 0; portion < Softmax::kPortions; ++portion) softmax_.add_weights(portion);
    }
    softmax_.join();
    multiply_values(products);
  }

  // Adds the weights of tiles [first_weights, end) of a unit to 32 of D of its sums.
  template <class Step>
  void multiply_chunk(const Unit& unit, int64_t chunk, int end, Step&& step) {
    Context& context = *unit.context;
    Engine::multiply(context.head_tiles->values.columns(chunk), unit.weights,
                     {unit.tiles, unit.first_weights, end - unit.first_weights, true}, context.has_sums[unit.panel],
                     sums(context, unit.panel, chunk), step);
  }
  template <class Step>
  void multiply_next(Step&& step) {
    multiply_chunk(ready_, ready_.next_product++, ready_.count, step);
  }
  void multiply_values(int64_t products) {
    if (!ready_.exists()) return;
    while (ready_.next_product < min(products, head_steps_)) multiply_next(NoStep());
    if (ready_.next_product < head_steps_) return;
    Context& context = *ready_.context;
    context.has_sums[ready_.panel] = true;
    ready_ = Unit();
    if (--context.units_left == 0) write_results(context);
  }

  // A score is far above its reference: first the sums take in all weights made so far, then they shrink.
  void raise_references() {
    multiply_values(kEverything);
    Context& context = *filling_.context;
    const int64_t panel = filling_.panel;
    if (filled_ > filling_.first_weights) {
      for (int64_t chunk = 0; chunk < head_steps_; ++chunk) multiply_chunk(filling_, chunk, filled_, NoStep());
      context.has_sums[panel] = true;
      filling_.first_weights = filled_;
    }
    softmax_.raise_references([&](int i, Vec factor) {
      if (!context.has_sums[panel]) return;
      for (int64_t row = 0; row < head_steps_ * kBlock; ++row) {
        float* cells = sums(context, panel, 0) + row * kBlock + i * Vec::kLanes;
        (Vec::load(cells) * factor).store(cells);
      }
    });
  }

  void write_results(const Context& context) {
    const AttentionShape& shape = params_.shape;
    const int64_t first = (context.batch * shape.num_heads + context.head) * shape.query_length + context.first_row;
    T* out = static_cast<T*>(params_.out) + first * shape.head_dim;
    float* lse = params_.lse + first;
    for (int64_t panel = 0; panel < context.num_panels(); ++panel) {
      const int64_t row = panel * kBlock;
      const int64_t num_rows = min(context.num_rows - row, kBlock);
      const PanelStatistics& statistics = context.statistics[panel];
      for (int64_t i = 0; i < num_rows; ++i) {
        lse[row + i] = statistics.is_new ? -__builtin_inff()
                                         : statistics.reference[i] * params_.scale + __builtin_logf(statistics.sum[i]);
      }
      for (int64_t chunk = 0; chunk < head_steps_; ++chunk) {
        float* tile = sums(context, panel, chunk);
        divide(tile, statistics);
        const int64_t column = chunk * kBlock;
        store_transposed_tile(tile, out + row * shape.head_dim + column, shape.head_dim, num_rows,
                              min(shape.head_dim - column, kBlock));
      }
    }
  }
  // Queries without any weight get 0.
  static void divide(float* tile, const PanelStatistics& statistics) {
    for (int i = 0; i < kVecsPerRow; ++i) {
      const Vec zero(0.0f);
      Vec inverse = zero;
      Mask none = Mask::from_bits(~0u);
      if (!statistics.is_new) {
        const Vec sum = Vec::load(statistics.sum + i * Vec::kLanes);
        inverse = Vec(1.0f) / sum;
        none = not_less(zero, abs(sum));
        none = Mask::from_bits(none.to_bits() & ~is_nan(sum).to_bits());
      }
      for (int row = 0; row < kBlock; ++row) {
        float* cells = tile + row * kBlock + i * Vec::kLanes;
        select(none, zero, Vec::load(cells) * inverse).store(cells);
      }
    }
  }

  const BlockSparseAttentionForwardParams& params_;
  Softmax softmax_;
  int64_t head_steps_;
  int unit_tiles_;
  Context contexts_[kContexts] = {};
  int next_context_ = 0;
  Operand* weights_[2];
  int weights_parity_ = 0;
  float* scores_[2];
  int scores_parity_ = 0;
  Unit filling_;    // the unit of the tile that softmax_ works on
  int filled_ = 0;  // and that tile's place in it
  Unit ready_;      // the unit whose weights are complete
};

}  // namespace tokcore::cpu::TOKCORE_ISA
