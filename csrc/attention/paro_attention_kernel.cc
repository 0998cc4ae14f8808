// PARO attention over prepared operands: query blocks, longest first; each walks its kept keys in spans and writes its
// rows in the order of the tokens. Compiled once per instruction-set level.
#include <algorithm>
#include <new>

#include "tokcore/attention/paro_operands.h"
#include "tokcore/cpu/subnormals.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

// What all query blocks of one key head share.
template <class Scores, class Values>
struct HeadOperands {
  typename Scores::Rows keys;
  const typename Values::Value* values;
  int64_t pair;          // (batch, key head)
  const int32_t* order;  // [N] token of every position
};

// Rows and columns of blocks that hold text are kept whatever the mask says.
class KeptBlocks {
 public:
  KeptBlocks(const ParoAttentionParams& params, Arena& arena)
      : params_(params), num_columns_(ceil_div(params.shape.length, params.mask.block_n)) {
    const int64_t words = ceil_div(num_columns_, 32);
    text_ = arena.take<uint32_t>(words);
    if (text_ == nullptr) return;
    for (int64_t word = 0; word < words; ++word) text_[word] = 0;
    for (int64_t column = 0; column < num_columns_; ++column) {
      if (has_text(column * params.mask.block_n, params.mask.block_n)) text_[column / 32] |= 1u << (column % 32);
    }
  }
  template <class Visit>
  void for_each(int64_t batch, int64_t head, int64_t row, Visit&& visit) const {
    const uint32_t* bits = params_.mask.row(batch, head, row);
    const bool all = has_text(row * params_.mask.block_m, params_.mask.block_m);
    for (int64_t word = 0; word * 32 < num_columns_; ++word) {
      const int64_t columns = num_columns_ - word * 32;
      const uint32_t meaningful = columns >= 32 ? ~0u : (1u << columns) - 1;
      for (uint32_t rest = (all ? ~0u : bits[word] | text_[word]) & meaningful; rest != 0; rest &= rest - 1) {
        visit(word * 32 + __builtin_ctz(rest));
      }
    }
  }

 private:
  bool has_text(int64_t first, int64_t count) const {
    const int64_t last = min(first + count, params_.shape.length) - 1;
    return params_.grid.is_text(first) || params_.grid.is_text(last);
  }
  const ParoAttentionParams& params_;
  int64_t num_columns_;
  uint32_t* text_;  // columns that hold text
};

// One worker's stream of query blocks. A span's scores are made together with the products of the span before, which
// may be that of another block: they keep the matrix unit busy while the vector units bring scores to steps.
template <class Scores, class Values, class T>
class ParoPipeline {
 public:
  using Operands = HeadOperands<Scores, Values>;

  ParoPipeline(const ParoAttentionParams& params, Arena& arena)
      : params_(params), scores_(params), values_(params), softmax_(arena), chunks_(params.shape.value_dim() / kBlock) {
    const int64_t panels = params.mask.block_m / kBlock;
    for (Context& context : contexts_) {
      context.queries = arena.take<typename Scores::Query>(panels * scores_.query_elements());
      context.factors = arena.take<float>(panels * kBlock);
      context.sums = arena.take<float>(panels * chunks_ * kTileCells);
      context.states = arena.take<SpanState>(panels);
      context.tiles = arena.take<int32_t>(params_.shape.padded_length() / kTileKeys);
    }
    weights_ = arena.take<typename Values::Softmax::Weight>(kSpanTiles * Values::Softmax::kWeightsPerTile);
    cells_ = arena.take<float>(kTileKeys * kScoreStride);
    products_ = arena.take<typename Values::Product>(chunks_ * kTileCells);
  }

  // Starts one query block; its results are written with the next one, or by drain().
  void run(const Operands& operands, const KeptBlocks& kept, int64_t batch, int64_t head, int64_t block_row) {
    const ParoShape& shape = params_.shape;
    Context& context = contexts_[next_context_];
    context.operands = &operands;
    context.head_of_batch = batch * shape.num_heads + head;
    context.first = block_row * params_.mask.block_m;
    context.panels = ceil_div(min(shape.length - context.first, params_.mask.block_m), kBlock);
    int64_t num_tiles = 0;
    kept.for_each(batch, head, block_row, [&](int64_t column) {
      const int64_t end = min((column + 1) * params_.mask.block_n, shape.length);
      for (int64_t key = column * params_.mask.block_n; key < end; key += kTileKeys) {
        context.tiles[num_tiles++] = static_cast<int32_t>(key / kTileKeys);
      }
    });
    for (int64_t panel = 0; panel < context.panels; ++panel) {
      const int64_t row = context.head_of_batch * shape.padded_length() + context.first + panel * kBlock;
      scores_.pack_queries(row, queries(context, panel));
      scores_.take_factors(row, params_.scale * kLog2E * Values::Softmax::kUnits, context.factors + panel * kBlock);
      context.states[panel].is_new = true;
      for (float& poison : context.states[panel].poison) poison = 0.0f;
    }
    if (num_tiles == 0) return write_rows(context);
    next_context_ ^= 1;
    // One panel after the other: what all of them need at once would not fit into L1.
    for (int64_t panel = 0; panel < context.panels; ++panel) {
      for (int64_t begin = 0; begin < num_tiles; begin += kSpanTiles) {
        const SpanTiles tiles = {context.tiles + begin, static_cast<int>(min(num_tiles - begin, kSpanTiles))};
        const bool ends_panel = begin + kSpanTiles >= num_tiles;
        run_span({&context, panel, tiles, begin == 0, ends_panel && panel == context.panels - 1},
                 ends_panel ? panel + 1 : panel, context.tiles[ends_panel ? 0 : begin + kSpanTiles]);
      }
    }
  }
  // Finishes what is under way.
  void drain() {
    multiply_values(0, chunks_);
    merge_products();
  }

 private:
  using Softmax = typename Values::Softmax;

  // A query block under way.
  struct Context {
    const Operands* operands;
    int64_t head_of_batch, first, panels;
    typename Scores::Query* queries;
    float* factors;     // [panels][32] units a score of each query counts
    float* sums;        // [panels][chunks][32 of D][32 queries]
    SpanState* states;  // [panels]
    int32_t* tiles;     // kept tiles of 64 keys, ascending
  };
  struct Span {
    Context* context = nullptr;
    int64_t panel = 0;
    SpanTiles tiles = {};
    bool is_first = false;    // of its panel
    bool ends_block = false;  // the last of all panels
  };

  typename Scores::Query* queries(const Context& context, int64_t panel) const {
    return context.queries + panel * scores_.query_elements();
  }
  float* sums(const Context& context, int64_t panel, int64_t chunk) const {
    return context.sums + (panel * chunks_ + chunk) * kTileCells;
  }
  int64_t keys_of(int64_t tile) const { return min(params_.shape.length - tile * kTileKeys, kTileKeys); }

  // The next span starts with a tile of a panel, unless this one ends the block.
  void run_span(const Span& span, int64_t next_panel, int32_t next_tile) {
    SpanState& state = span.context->states[span.panel];
    if (!state.is_new) {
      for (int c = 0; c < kBlock; ++c) state.base[c] = state.reference[c];
    }
    add_scores(span, state.is_new,
               [&](int i) { multiply_values(chunks_ * i / span.tiles.count, chunks_ * (i + 1) / span.tiles.count); });
    if (softmax_.exceeds()) {
      for_each_tile(
          span, [](int) {},
          [&](int, const float* cells, int64_t num_rows, const float* factors) {
            Softmax::template raise_base<Scores>(cells, num_rows, factors, state.base);
          });
      add_scores(span, false, [](int) {});
    }
    merge_products();
    softmax_.end_scores(state);
    // The matrix unit makes the first scores of the next span meanwhile.
    has_scores_ = !span.ends_block;
    if (has_scores_) multiply_keys(*span.context, next_panel, next_tile, 0);
    for (int i = 0; i < span.tiles.count; ++i) softmax_.make_weights(i, weights_ + i * Softmax::kWeightsPerTile);
    softmax_.end_span(state);
    weighed_ = span;
  }
  // The products of the weighed span with chunks [first, last) of its values.
  void multiply_values(int64_t first, int64_t last) {
    if (weighed_.context == nullptr) return;
    const Context& context = *weighed_.context;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      values_.multiply(context.operands->values, chunk, weighed_.tiles, weights_, context.states[weighed_.panel],
                       weighed_.is_first, products_ + chunk * kTileCells, sums(context, weighed_.panel, chunk));
    }
  }
  // After all its products.
  void merge_products() {
    if (weighed_.context == nullptr) return;
    const Context& context = *weighed_.context;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      Values::merge(products_ + chunk * kTileCells, context.states[weighed_.panel], weighed_.is_first,
                    sums(context, weighed_.panel, chunk));
    }
    if (weighed_.ends_block) write_rows(context);
    weighed_ = Span();
  }
  void multiply_keys(const Context& context, int64_t panel, int64_t tile, int parity) {
    scores_.multiply(context.operands->keys, tile, queries(context, panel), cells_ + parity * kBlock);
  }
  template <class Between>
  void add_scores(const Span& span, bool takes_base, Between&& between) {
    SpanState& state = span.context->states[span.panel];
    softmax_.begin_span();
    for_each_tile(span, between, [&](int i, const float* cells, int64_t num_rows, const float* factors) {
      if (i == 0 && takes_base) Softmax::template take_base<Scores>(cells, num_rows, factors, state.base);
      softmax_.template add_scores<Scores>(cells, num_rows, factors, state, i);
    });
  }
  // Visits the scores of each tile of a span, while the matrix unit makes those of the next and what `between` asks
  // for.
  template <class Between, class Visit>
  void for_each_tile(const Span& span, Between&& between, Visit&& visit) {
    alignas(64) float factors[kBlock];
    const Context& context = *span.context;
    const Operands& operands = *context.operands;
    const int32_t* tiles = span.tiles.tiles;
    if (!has_scores_) multiply_keys(context, span.panel, tiles[0], 0);
    has_scores_ = false;
    for (int i = 0; i < span.tiles.count; ++i) {
      if (i + 1 < span.tiles.count) {
        multiply_keys(context, span.panel, tiles[i + 1], (i + 1) % 2);
      }
      between(i);
      scores_.scale_factors(context.factors + span.panel * kBlock, operands.pair, tiles[i], factors);
      visit(i, cells_ + i % 2 * kBlock, keys_of(tiles[i]), factors);
    }
  }

  void write_rows(const Context& context) {
    for (int64_t panel = 0; panel < context.panels; ++panel) write_rows(context, panel);
  }
  // Divides by the sums of weights and writes 32 rows where their tokens are.
  void write_rows(const Context& context, int64_t panel) {
    const ParoShape& shape = params_.shape;
    const Operands& operands = *context.operands;
    const SpanState& state = context.states[panel];
    const int64_t head_of_batch = context.head_of_batch, first = context.first + panel * kBlock;
    const int64_t num_rows = min(shape.length - first, kBlock), D = shape.head_dim;
    alignas(64) float inverse[kBlock];
    for (int c = 0; c < kBlock; ++c) inverse[c] = state.is_new ? 0.0f : 1.0f / state.sum[c];
    T* out = static_cast<T*>(params_.out) + head_of_batch * shape.length * D;
    const float* value_scale = params_.v_scale == nullptr ? nullptr : params_.v_scale + operands.pair * D;
    T rows[kBlock * kMostHeadDim];
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      float* tile = sums(context, panel, chunk);
      for (int64_t row = 0; row < kBlock; ++row) {
        const int64_t d = chunk * kBlock + row;
        const float scale = value_scale == nullptr || d >= D ? 1.0f : value_scale[d];
        float* cells = tile + row * kBlock;
        for (int c = 0; c < kBlock; ++c) {
          cells[c] = state.is_new ? 0.0f : cells[c] * inverse[c] * scale + state.poison[c];
        }
      }
      store_transposed_tile(tile, rows + chunk * kBlock, shape.value_dim(), num_rows, kBlock);
    }
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t token = operands.order[first + i];
      __builtin_memcpy(out + token * D, rows + i * shape.value_dim(), static_cast<size_t>(D) * sizeof(T));
      if (params_.lse != nullptr) {
        params_.lse[head_of_batch * shape.length + token] = lse_of(state, head_of_batch * shape.length + first + i, i);
      }
    }
  }
  float lse_of(const SpanState& state, int64_t row, int64_t i) const {
    if (state.is_new) return -__builtin_inff();
    constexpr float kLn2 = 0.693147180559945309f;
    const float mean_score = params_.mean_score == nullptr ? 0.0f : params_.mean_score[row] * params_.scale;
    const float reference = state.reference[i] * (kLn2 / Softmax::kUnits);
    return reference + __builtin_logf(state.sum[i] / Softmax::kTop) + mean_score + state.poison[i];
  }

  static constexpr int64_t kMostHeadDim = 256;
  const ParoAttentionParams& params_;
  Scores scores_;
  Values values_;
  Softmax softmax_;
  int64_t chunks_;  // of 32 of Dv
  Context contexts_[2] = {};
  int next_context_ = 0;
  Span weighed_;                        // the span whose products are to be made
  typename Softmax::Weight* weights_;   // of that span
  typename Values::Product* products_;  // [chunks][32 of D][32 queries] of that span
  float* cells_;                        // [64][2 tiles][32]: kScoreStride
  bool has_scores_ = false;             // of the first tile of the span to come
};

struct Item {
  int32_t pair;    // (batch, key head) in its group
  int32_t member;  // query head of that key head
  int32_t row;     // of blocks
  int32_t num_kept;
};

template <class Scores, class Values, class T>
class Attention {
 public:
  using Pipeline = ParoPipeline<Scores, Values, T>;
  using Operands = HeadOperands<Scores, Values>;

  Attention(const ParoAttentionParams& params, const Threads& threads)
      : params_(params),
        threads_(threads),
        scores_(params),
        values_(params),
        num_pairs_(params.shape.batch * params.shape.num_kv_heads),
        num_rows_(ceil_div(params.shape.length, params.mask.block_m)) {
    const int64_t pair_bytes = scores_.key_elements() * static_cast<int64_t>(sizeof(typename Scores::Key)) +
                               values_.elements() * static_cast<int64_t>(sizeof(typename Values::Value));
    pairs_at_once_ = max(min(kPackedBytes / max(pair_bytes, 1), num_pairs_), 1);
  }

  void run() {
    Arena measure;
    plan(measure);
    Scratch scratch(measure.used());
    Arena arena(scratch.data());
    plan(arena);
    for (int code = 0; code < kParoOrders; ++code) {
      if (!uses(code)) continue;
      for (int64_t i = 0; i < params_.shape.length; ++i) {
        orders_[code][i] = static_cast<int32_t>(params_.grid.token(code, i));
      }
    }
    for (int64_t first = 0; first < num_pairs_; first += pairs_at_once_) {
      run_pairs(first, min(num_pairs_ - first, pairs_at_once_));
    }
  }

 private:
  static constexpr int64_t kPackedBytes = int64_t{16} << 20;

  bool uses(int code) const {
    const int64_t* end = params_.permutation + params_.shape.num_kv_heads;
    return std::find(params_.permutation, end, code) != end;
  }

  void plan(Arena& arena) {
    items_ = arena.take<Item>(pairs_at_once_ * params_.shape.group_size() * num_rows_);
    keys_ = arena.take<typename Scores::Key>(pairs_at_once_ * scores_.key_elements());
    packed_values_ = arena.take<typename Values::Value>(pairs_at_once_ * values_.elements());
    operands_ = arena.take<Operands>(pairs_at_once_);
    for (int code = 0; code < kParoOrders; ++code) {
      if (uses(code)) orders_[code] = arena.take<int32_t>(params_.shape.length);
    }
    kept_ = place<KeptBlocks>(arena, params_);
    pipelines_ = arena.take<Pipeline*>(threads_.count);
    for (int i = 0; i < threads_.count; ++i) {
      arena.separate_threads();
      Pipeline* pipeline = place<Pipeline>(arena, params_);
      if (pipelines_ != nullptr) pipelines_[i] = pipeline;
    }
  }
  template <class Object>
  static Object* place(Arena& arena, const ParoAttentionParams& params) {
    Object* memory = arena.take<Object>(1);
    if (memory != nullptr) return new (memory) Object(params, arena);
    Object measured(params, arena);
    return nullptr;
  }

  void run_pairs(int64_t first, int64_t count) {
    const ParoShape& shape = params_.shape;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t code = params_.permutation[(first + i) % shape.num_kv_heads];
      new (operands_ + i)
          Operands{scores_.rows_of(first + i, keys_ + i * scores_.key_elements()),
                   values_.tiles_of(first + i, packed_values_ + i * values_.elements()), first + i, orders_[code]};
    }
    const int64_t num_tiles = shape.padded_length() / kTileKeys;
    for_each_item(threads_, count * num_tiles, [&](int64_t item, int) {
      const int64_t i = item / num_tiles, tile = item % num_tiles;
      scores_.pack_keys(operands_[i].keys, first + i, tile, keys_ + i * scores_.key_elements());
      values_.pack(first + i, tile, packed_values_ + i * values_.elements());
    });
    const int64_t num_items = list_items(first, count);
    for_each_item(
        threads_, num_items,
        [&](int64_t index, int worker) {
          const Item& item = items_[index];
          const int64_t pair = first + item.pair;
          pipelines_[worker]->run(operands_[item.pair], *kept_, pair / shape.num_kv_heads,
                                  pair % shape.num_kv_heads * shape.group_size() + item.member, item.row);
        },
        [&](int worker, auto&& run) {
          [[maybe_unused]] typename FloatScores::Engine::WorkerState state;
          const SubnormalsAsZero subnormals;
          run();
          pipelines_[worker]->drain();
        });
  }

  // Head after head, so that its keys and values stay in the cache; within a head the longest rows of blocks first.
  int64_t list_items(int64_t first, int64_t count) {
    const ParoShape& shape = params_.shape;
    int64_t num_items = 0;
    for (int64_t pair = 0; pair < count; ++pair) {
      const int64_t begin = num_items;
      const int64_t batch = (first + pair) / shape.num_kv_heads, kv_head = (first + pair) % shape.num_kv_heads;
      for (int64_t member = 0; member < shape.group_size(); ++member) {
        for (int64_t row = 0; row < num_rows_; ++row) {
          int32_t num_kept = 0;
          kept_->for_each(batch, kv_head * shape.group_size() + member, row, [&](int64_t) { ++num_kept; });
          items_[num_items++] = {static_cast<int32_t>(pair), static_cast<int32_t>(member), static_cast<int32_t>(row),
                                 num_kept};
        }
      }
      std::sort(items_ + begin, items_ + num_items, [](const Item& a, const Item& b) {
        if (a.num_kept != b.num_kept) return a.num_kept > b.num_kept;
        return a.member != b.member ? a.member < b.member : a.row < b.row;
      });
    }
    return num_items;
  }

  const ParoAttentionParams& params_;
  const Threads& threads_;
  Scores scores_;
  Values values_;
  int64_t num_pairs_;
  int64_t num_rows_;
  int64_t pairs_at_once_;
  Item* items_ = nullptr;
  typename Scores::Key* keys_ = nullptr;
  typename Values::Value* packed_values_ = nullptr;
  Operands* operands_ = nullptr;
  int32_t* orders_[kParoOrders] = {};
  KeptBlocks* kept_ = nullptr;
  Pipeline** pipelines_ = nullptr;
};

template <class Scores, class Values>
void attend(const ParoAttentionParams& params, const Threads& threads) {
  switch (params.dtype) {
    case DType::kFloat32:
      return Attention<Scores, Values, float>(params, threads).run();
    case DType::kBFloat16:
      return Attention<Scores, Values, BFloat16>(params, threads).run();
    case DType::kFloat16:
      return Attention<Scores, Values, Float16>(params, threads).run();
  }
}

template <class Scores>
void attend(const ParoAttentionParams& params, const Threads& threads) {
  const bool bytes = params.pv == ParoFormat::kInt8 || params.pv == ParoFormat::kInt4;
  bytes ? attend<Scores, ByteValues>(params, threads) : attend<Scores, FloatValues>(params, threads);
}

}  // namespace

void paro_attention(const ParoAttentionParams& params, const Threads& threads) {
  params.qk == ParoFormat::kBf16 ? attend<FloatScores>(params, threads) : attend<ByteScores>(params, threads);
}

}  // namespace tokcore::cpu::TOKCORE_ISA
