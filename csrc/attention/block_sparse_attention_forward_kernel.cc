// Forward: query blocks, longest first, over keys and values packed once per key head. Compiled once per
// instruction-set level.
#include <algorithm>
#include <new>

#include "tokcore/attention/attention_pipeline.h"
#include "tokcore/cpu/subnormals.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

struct Item {
  int32_t pair;    // (batch, key head) in its group
  int32_t member;  // query head of that key head
  int32_t row;     // of blocks
  int32_t num_kept;
};

template <class Engine, class T>
class Forward {
 public:
  using Operand = typename Engine::Operand;
  using Pipeline = AttentionPipeline<Engine, T>;

  Forward(const BlockSparseAttentionForwardParams& params, const Threads& threads)
      : params_(params),
        threads_(threads),
        keys_in_place_(RowTiles<Engine, T>::can_read_in_place(params.k, params.shape.head_dim)),
        num_pairs_(params.shape.batch * params.shape.num_kv_heads),
        num_rows_(ceil_div(params.shape.query_length, params.mask.block_m)),
        key_elements_(RowTiles<Engine, T>::elements(params.shape.key_length, params.shape.head_dim, keys_in_place_)),
        value_elements_(TransposedTiles<Engine, T>::elements(params.shape.key_length, params.shape.head_dim)) {
    const int64_t pair_bytes = (key_elements_ + value_elements_) * static_cast<int64_t>(sizeof(Operand));
    pairs_at_once_ = max(min(kPackedBytes / max(pair_bytes, 1), num_pairs_), 1);
  }

  void run() {
    Arena measure;
    plan(measure);
    Scratch scratch(measure.used());
    Arena arena(scratch.data());
    plan(arena);
    for (int64_t first = 0; first < num_pairs_; first += pairs_at_once_) {
      run_pairs(first, min(num_pairs_ - first, pairs_at_once_), arena);
    }
  }

 private:
  static constexpr int64_t kPackedBytes = int64_t{16} << 20;
  static constexpr int64_t kTilesPerItem = 8;  // packed at a time

  void plan(Arena& arena) {
    items_ = arena.take<Item>(pairs_at_once_ * params_.shape.group_size() * num_rows_);
    packed_keys_ = arena.take<Operand>(pairs_at_once_ * key_elements_);
    packed_values_ = arena.take<Operand>(pairs_at_once_ * value_elements_);
    tiles_ = arena.take<KeyValueTiles<Engine, T>>(pairs_at_once_);
    pipelines_ = arena.take<Pipeline*>(threads_.count);
    for (int i = 0; i < threads_.count; ++i) {
      arena.separate_threads();
      Pipeline* place = arena.take<Pipeline>(1);
      if (place == nullptr) {
        Pipeline measured(params_, arena);
      } else {
        pipelines_[i] = new (place) Pipeline(params_, arena);
      }
    }
  }

  void run_pairs(int64_t first, int64_t count, Arena&) {
    const AttentionShape& shape = params_.shape;
    for (int64_t pair = 0; pair < count; ++pair) {
      const int64_t batch = (first + pair) / shape.num_kv_heads, head = (first + pair) % shape.num_kv_heads;
      auto rows = [&](const HeadsView& view) {
        return rows_of_head<T>(view, batch, head, shape.key_length, shape.head_dim);
      };
      tiles_[pair].keys = {rows(params_.k), keys_in_place_, packed_keys_ + pair * key_elements_};
      tiles_[pair].values = {rows(params_.v), packed_values_ + pair * value_elements_};
    }
    const int64_t num_tiles = ceil_div(shape.key_length, kBlock);
    const int64_t parts = ceil_div(num_tiles, kTilesPerItem);
    for_each_item(threads_, count * parts, [&](int64_t item, int) {
      const KeyValueTiles<Engine, T>& tiles = tiles_[item / parts];
      const int64_t begin = item % parts * kTilesPerItem;
      for (int64_t tile = begin; tile < min(begin + kTilesPerItem, num_tiles); ++tile) {
        tiles.keys.pack(tile);
        tiles.values.pack(tile);
      }
    });
    const int64_t num_items = list_items(first, count);
    for_each_item(
        threads_, num_items,
        [&](int64_t index, int worker) {
          const Item& item = items_[index];
          const int64_t pair = first + item.pair;
          pipelines_[worker]->run(tiles_[item.pair], pair / shape.num_kv_heads,
                                  pair % shape.num_kv_heads * shape.group_size() + item.member, item.row);
        },
        [&](int worker, auto&& run) {
          [[maybe_unused]] typename Engine::WorkerState state;
          const SubnormalsAsZero subnormals;
          run();
          pipelines_[worker]->drain();
        });
  }

  // The query blocks of one key head follow one another, so that its keys and values stay in the cache; among them the
  // longest come first, so that no worker is left with a long one at the end.
  int64_t list_items(int64_t first, int64_t count) {
    const AttentionShape& shape = params_.shape;
    int64_t num_items = 0;
    for (int64_t pair = 0; pair < count; ++pair) {
      const int64_t begin = num_items;
      const int64_t batch = (first + pair) / shape.num_kv_heads, kv_head = (first + pair) % shape.num_kv_heads;
      for (int64_t member = 0; member < shape.group_size(); ++member) {
        for (int64_t row = 0; row < num_rows_; ++row) {
          const int64_t last_row = min((row + 1) * params_.mask.block_m, shape.query_length) - 1;
          const int64_t seen =
              params_.causal ? max(min(last_row + 1 + shape.causal_offset(), shape.key_length), 0) : shape.key_length;
          const uint32_t* bits = params_.mask.row(batch, kv_head * shape.group_size() + member, row);
          items_[num_items++] = {static_cast<int32_t>(pair), static_cast<int32_t>(member), static_cast<int32_t>(row),
                                 static_cast<int32_t>(count_kept_blocks(bits, ceil_div(seen, params_.mask.block_n)))};
        }
      }
      std::sort(items_ + begin, items_ + num_items, [](const Item& a, const Item& b) {
        if (a.num_kept != b.num_kept) return a.num_kept > b.num_kept;
        return a.member != b.member ? a.member < b.member : a.row < b.row;
      });
    }
    return num_items;
  }

  const BlockSparseAttentionForwardParams& params_;
  const Threads& threads_;
  bool keys_in_place_;
  int64_t num_pairs_;
  int64_t num_rows_;
  int64_t key_elements_;
  int64_t value_elements_;
  int64_t pairs_at_once_;
  Item* items_ = nullptr;
  Operand* packed_keys_ = nullptr;
  Operand* packed_values_ = nullptr;
  KeyValueTiles<Engine, T>* tiles_ = nullptr;
  Pipeline** pipelines_ = nullptr;
};

template <class T>
void run_forward(const BlockSparseAttentionForwardParams& params, const Threads& threads) {
  Forward<typename EngineOf<T>::type, T>(params, threads).run();
}

}  // namespace

void block_sparse_attention_forward(const BlockSparseAttentionForwardParams& params, const Threads& threads) {
  switch (params.dtype) {
    case DType::kFloat32:
      return run_forward<float>(params, threads);
    case DType::kBFloat16:
      return run_forward<BFloat16>(params, threads);
    case DType::kFloat16:
      return run_forward<Float16>(params, threads);
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
