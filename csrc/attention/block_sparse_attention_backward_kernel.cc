// Backward: one sweep in which every block of keys gathers grad_k and grad_v from the queries that see it, and one in
// which every block of queries gathers grad_q. Compiled once per instruction-set level.
#include <algorithm>
#include <new>

#include "tokcore/attention/gradient_sweep.h"
#include "tokcore/cpu/subnormals.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

struct Item {
  int32_t owner;  // head of the sweep's owners, in its group
  int32_t block;
  int32_t num_kept;
};

// One sweep. Owners are the key heads (kOwnsKeys) or the query heads of all batch entries; what they walk is packed for
// as many of the pairs (batch, key head) at once as stay in the cache.
template <class Engine, class T, bool kOwnsKeys>
class Sweep {
 public:
  using Operand = typename Engine::Operand;
  using Gradient = GradientSweep<Engine, T, kOwnsKeys>;

  Sweep(const BlockSparseAttentionBackwardParams& params, const QueryStatistics& statistics, const Threads& threads)
      : params_(params),
        statistics_(statistics),
        threads_(threads),
        num_pairs_(params.shape.batch * params.shape.num_kv_heads),
        walked_length_(kOwnsKeys ? params.shape.query_length : params.shape.key_length),
        owned_length_(kOwnsKeys ? params.shape.key_length : params.shape.query_length),
        block_(kOwnsKeys ? params.mask.block_n : params.mask.block_m),
        walked_per_pair_(kOwnsKeys ? params.shape.group_size() : 1),
        owners_per_pair_(kOwnsKeys ? 1 : params.shape.group_size()),
        in_place1_(RowTiles<Engine, T>::can_read_in_place(walked1(), params.shape.head_dim)),
        in_place2_(RowTiles<Engine, T>::can_read_in_place(walked2(), params.shape.head_dim)),
        row_elements1_(RowTiles<Engine, T>::elements(walked_length_, params.shape.head_dim, in_place1_)),
        row_elements2_(RowTiles<Engine, T>::elements(walked_length_, params.shape.head_dim, in_place2_)),
        column_elements_(TransposedTiles<Engine, T>::elements(walked_length_, params.shape.head_dim)) {
    const int64_t head_elements = row_elements1_ + row_elements2_ + (kOwnsKeys ? 2 : 1) * column_elements_;
    const int64_t pair_bytes = walked_per_pair_ * head_elements * static_cast<int64_t>(sizeof(Operand));
    pairs_at_once_ = max(min(kPackedBytes / max(pair_bytes, 1), num_pairs_), 1);
  }

  void run() {
    Arena measure;
    plan(measure);
    Scratch scratch(measure.used());
    Arena arena(scratch.data());
    plan(arena);
    for (int64_t first = 0; first < num_pairs_; first += pairs_at_once_) {
      run_pairs(first, min(num_pairs_ - first, pairs_at_once_));
    }
  }

 private:
  static constexpr int64_t kPackedBytes = int64_t{16} << 20;
  static constexpr int64_t kTilesPerItem = 8;  // packed at a time

  const HeadsView& walked1() const { return kOwnsKeys ? params_.q : params_.k; }
  const HeadsView& walked2() const { return kOwnsKeys ? params_.grad_out : params_.v; }
  const HeadsView& owned1() const { return kOwnsKeys ? params_.k : params_.q; }
  const HeadsView& owned2() const { return kOwnsKeys ? params_.v : params_.grad_out; }
  int64_t num_blocks() const { return ceil_div(owned_length_, block_); }

  void plan(Arena& arena) {
    const int64_t heads = pairs_at_once_ * walked_per_pair_;
    items_ = arena.take<Item>(pairs_at_once_ * owners_per_pair_ * num_blocks());
    rows1_ = arena.take<Operand>(heads * row_elements1_);
    rows2_ = arena.take<Operand>(heads * row_elements2_);
    columns1_ = arena.take<Operand>(heads * column_elements_);
    columns2_ = arena.take<Operand>(kOwnsKeys ? heads * column_elements_ : 0);
    walked_ = arena.take<OtherSide<Engine, T>>(heads);
    gradients_ = arena.take<Gradient*>(threads_.count);
    for (int i = 0; i < threads_.count; ++i) {
      arena.separate_threads();
      Gradient* place = arena.take<Gradient>(1);
      if (place == nullptr) {
        Gradient measured(params_, arena);
      } else {
        gradients_[i] = new (place) Gradient(params_, arena);
      }
    }
  }

  void run_pairs(int64_t first, int64_t count) {
    const AttentionShape& shape = params_.shape;
    const int64_t first_walked = first * walked_per_pair_, num_walked = count * walked_per_pair_;
    const int64_t heads_per_batch = shape.num_kv_heads * walked_per_pair_;
    for (int64_t i = 0; i < num_walked; ++i) {
      const int64_t batch = (first_walked + i) / heads_per_batch, head = (first_walked + i) % heads_per_batch;
      auto rows = [&](const HeadsView& view) {
        return rows_of_head<T>(view, batch, head, walked_length_, shape.head_dim);
      };
      walked_[i].rows1 = {rows(walked1()), in_place1_, rows1_ + i * row_elements1_};
      walked_[i].rows2 = {rows(walked2()), in_place2_, rows2_ + i * row_elements2_};
      walked_[i].columns1 = {rows(walked1()), columns1_ + i * column_elements_};
      if constexpr (kOwnsKeys) walked_[i].columns2 = {rows(walked2()), columns2_ + i * column_elements_};
    }
    const int64_t num_tiles = ceil_div(walked_length_, kBlock);
    const int64_t parts = ceil_div(num_tiles, kTilesPerItem);
    for_each_item(threads_, num_walked * parts, [&](int64_t item, int) {
      const OtherSide<Engine, T>& side = walked_[item / parts];
      const int64_t begin = item % parts * kTilesPerItem;
      for (int64_t tile = begin; tile < min(begin + kTilesPerItem, num_tiles); ++tile) {
        side.rows1.pack(tile);
        side.rows2.pack(tile);
        side.columns1.pack(tile);
        if constexpr (kOwnsKeys) side.columns2.pack(tile);
      }
    });
    const int64_t num_items = list_items(first * owners_per_pair_, count * owners_per_pair_);
    for_each_item(
        threads_, num_items,
        [&](int64_t index, int worker) { run_item(first * owners_per_pair_, items_[index], *gradients_[worker]); },
        [](int, auto&& run) {
          [[maybe_unused]] typename Engine::WorkerState state;
          const SubnormalsAsZero subnormals;
          run();
        });
  }

  int64_t owner_heads() const { return params_.shape.num_kv_heads * owners_per_pair_; }  // of a batch entry

  void run_item(int64_t first_owner, const Item& item, Gradient& gradient) {
    const AttentionShape& shape = params_.shape;
    const int64_t owner = first_owner + item.owner;
    const int64_t batch = owner / owner_heads(), head = owner % owner_heads();
    const Rows<T> rows1 = rows_of_head<T>(owned1(), batch, head, owned_length_, shape.head_dim);
    const Rows<T> rows2 = rows_of_head<T>(owned2(), batch, head, owned_length_, shape.head_dim);
    const int64_t end = min((item.block + 1) * block_, owned_length_);
    auto of_owner = [&](void* data) {
      return data == nullptr ? nullptr : static_cast<T*>(data) + owner * owned_length_ * shape.head_dim;
    };
    for (int64_t row = item.block * block_; row < end; row += kBlock) {
      gradient.begin(rows1, rows2, row);
      for (int64_t member = 0; member < walked_per_pair_; ++member) {
        const int64_t query_head = kOwnsKeys ? head * walked_per_pair_ + member : head;
        const int64_t walked = kOwnsKeys ? item.owner * walked_per_pair_ + member : item.owner / owners_per_pair_;
        gradient.add(walked_[walked], statistics_of(batch, query_head), batch, query_head);
      }
      if constexpr (kOwnsKeys) {
        gradient.write(of_owner(params_.grad_k), of_owner(params_.grad_v));
      } else {
        gradient.write(of_owner(params_.grad_q), nullptr);
      }
    }
  }

  QueryStatistics statistics_of(int64_t batch, int64_t head) const {
    const int64_t at = (batch * params_.shape.num_heads + head) * round_up(params_.shape.query_length, kBlock);
    return {statistics_.shift + at, statistics_.delta + at};
  }

  // Heads one after the other, so that what they walk stays in the cache; of each the longest items first.
  int64_t list_items(int64_t first_owner, int64_t count) {
    int64_t num_items = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t batch = (first_owner + i) / owner_heads(), head = (first_owner + i) % owner_heads();
      const int64_t begin = num_items;
      for (int64_t block = 0; block < num_blocks(); ++block) {
        items_[num_items++] = {static_cast<int32_t>(i), static_cast<int32_t>(block),
                               static_cast<int32_t>(count_kept(batch, head, block))};
      }
      std::sort(items_ + begin, items_ + num_items, [](const Item& a, const Item& b) {
        return a.num_kept != b.num_kept ? a.num_kept > b.num_kept : a.block < b.block;
      });
    }
    return num_items;
  }
  int64_t count_kept(int64_t batch, int64_t head, int64_t block) const {
    const BlockMaskView& mask = params_.mask;
    if constexpr (!kOwnsKeys) {
      return count_kept_blocks(mask.row(batch, head, block), ceil_div(params_.shape.key_length, mask.block_n));
    }
    int64_t kept = 0;
    for (int64_t member = 0; member < walked_per_pair_; ++member) {
      for (int64_t row = 0; row * mask.block_m < params_.shape.query_length; ++row) {
        kept += mask.keeps(batch, head * walked_per_pair_ + member, row, block) ? 1 : 0;
      }
    }
    return kept;
  }

  const BlockSparseAttentionBackwardParams& params_;
  const QueryStatistics& statistics_;
  const Threads& threads_;
  int64_t num_pairs_, walked_length_, owned_length_, block_, walked_per_pair_, owners_per_pair_;
  bool in_place1_, in_place2_;
  int64_t row_elements1_, row_elements2_, column_elements_;
  int64_t pairs_at_once_;
  Item* items_ = nullptr;
  Operand *rows1_ = nullptr, *rows2_ = nullptr, *columns1_ = nullptr, *columns2_ = nullptr;
  OtherSide<Engine, T>* walked_ = nullptr;
  Gradient** gradients_ = nullptr;
};

// shift and delta of every query. delta is the diagonal of grad_out out^T, made by the product that makes the slopes:
// of a query with a single weight both are the same sum, and their difference is 0.
template <class Engine, class T>
void fill_statistics(const BlockSparseAttentionBackwardParams& params, const QueryStatistics& statistics,
                     const Threads& threads) {
  using Operand = typename Engine::Operand;
  const AttentionShape& shape = params.shape;
  const int64_t padded = round_up(shape.query_length, kBlock), tiles = padded / kBlock;
  const int64_t head_steps = ceil_div(shape.head_dim, kBlock), stride = row_operand_stride(shape.head_dim);
  const int64_t panel_elements = head_steps * kTileCells, row_elements = kBlock * stride;
  Arena counting;
  counting.take<Operand>(panel_elements);
  counting.take<Operand>(row_elements);
  counting.take<float>(kTileCells);
  const ScratchPerThread scratch(threads.count, counting.used());
  auto work = [&](int64_t item, int worker) {
    const int64_t head = item / tiles, first = item % tiles * kBlock;
    const int64_t num_rows = min(shape.query_length - first, kBlock);
    auto rows_of = [&](const HeadsView& view) {
      return rows_of_head<T>(view, head / shape.num_heads, head % shape.num_heads, shape.query_length, shape.head_dim);
    };
    const Rows<T> grad_out = rows_of(params.grad_out);
    Arena arena(scratch[worker]);
    Operand* panel = arena.take<Operand>(panel_elements);
    Operand* row_operand = arena.take<Operand>(row_elements);
    float* product = arena.take<float>(kTileCells);
    Engine::pack_rows(grad_out.data + first * grad_out.stride, grad_out.stride, num_rows, shape.head_dim, row_operand,
                      stride);
    const T* out_rows[kBlock];
    rows_of(params.out).tile(first / kBlock, out_rows);
    Engine::pack_transposed(out_rows, shape.head_dim, panel);
    Engine::multiply({row_operand, stride}, panel, {nullptr, 0, static_cast<int>(head_steps)}, false, product,
                     NoStep());
    for (int64_t i = 0; i < kBlock; ++i) {
      float shift = -__builtin_inff(), delta = 0.0f;
      if (i < num_rows) {
        const int64_t at = head * shape.query_length + first + i;
        const float lse = params.lse[at];
        if (lse != -__builtin_inff()) shift = -lse;
        delta = product[i * kBlock + i] - (params.grad_lse != nullptr ? params.grad_lse[at] : 0.0f);
      }
      statistics.shift[head * padded + first + i] = shift;
      statistics.delta[head * padded + first + i] = delta;
    }
  };
  for_each_item(threads, shape.batch * shape.num_heads * tiles, work, [](int, auto&& run) {
    [[maybe_unused]] typename Engine::WorkerState state;
    const SubnormalsAsZero subnormals;
    run();
  });
}

template <class T>
void run_backward(const BlockSparseAttentionBackwardParams& params, const Threads& threads) {
  using Engine = typename EngineOf<T>::type;
  const AttentionShape& shape = params.shape;
  const int64_t count = shape.batch * shape.num_heads * round_up(shape.query_length, kBlock);
  Scratch scratch(2 * static_cast<size_t>(count) * sizeof(float));
  float* values = reinterpret_cast<float*>(scratch.data());
  const QueryStatistics statistics = {values, values + count};
  fill_statistics<Engine, T>(params, statistics, threads);
  if (params.grad_k != nullptr || params.grad_v != nullptr) Sweep<Engine, T, true>(params, statistics, threads).run();
  if (params.grad_q != nullptr) Sweep<Engine, T, false>(params, statistics, threads).run();
}

}  // namespace

void block_sparse_attention_backward(const BlockSparseAttentionBackwardParams& params, const Threads& threads) {
  switch (params.dtype) {
    case DType::kFloat32:
      return run_backward<float>(params, threads);
    case DType::kBFloat16:
      return run_backward<BFloat16>(params, threads);
    case DType::kFloat16:
      return run_backward<Float16>(params, threads);
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
