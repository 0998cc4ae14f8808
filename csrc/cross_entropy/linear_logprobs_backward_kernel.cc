// Backward: per vocabulary block and superblock, recompute the logits, turn them into dZ, and multiply dZ with e and c
// while it is in cache. A gradient element has one owner, which adds in a fixed order in fp32. Compiled once per
// instruction set.
#include "tokcore/cpu/prefetch.h"
#include "tokcore/cross_entropy/gradient_tiles.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

template <class Engine, class T>
class Backward {
 public:
  using Operand = typename Engine::Operand;

  Backward(const LinearLogprobsBackwardParams& params, const Threads& threads)
      : params_(params),
        threads_(threads),
        padded_size_(round_up(params.hidden_size, kBlock)),
        num_columns_(padded_size_ / kBlock),
        num_superblocks_(ceil_div(params.num_active, kSuperblock)),
        padded_active_(round_up(params.num_active, kBlock)),
        has_uniform_(params.grad_sum != nullptr),
        uniform_apart_(has_uniform_ && params.kept != nullptr),
        wants_c_(params.grad_c != nullptr || params.grad_c_sum != nullptr) {}

  int64_t workspace() {
    Arena measure;
    plan(measure);
    return static_cast<int64_t>(measure.used());
  }

  void run() {
    Scratch scratch(static_cast<size_t>(workspace()));
    Arena arena(scratch.data());
    plan(arena);
    pack_positions();
    if (uniform_apart_) sum_uniform();
    const int64_t num_vocab_blocks = ceil_div(params_.vocab_size, kGradientBlock);
    for (int64_t block = 0; block < num_vocab_blocks; ++block) run_vocab_block(block);
    if (params_.grad_e != nullptr) store_grad_e();
  }

 private:
  void plan(Arena& arena) {
    const int64_t workers = threads_.count;
    const bool wants_e = params_.grad_e != nullptr;
    panels_ = arena.take<Operand>(params_.stored_logits == nullptr ? padded_active_ * padded_size_ : 0);
    columns_of_e_ = arena.take<Operand>(wants_c_ ? padded_active_ * padded_size_ : 0);
    columns_of_c_ = arena.take<Operand>(wants_e ? kGradientBlock * padded_size_ : 0);
    grad_e_ = arena.take<float>(wants_e ? padded_active_ * padded_size_ : 0);
    grad_c_ = arena.take<float>(wants_c_ && num_superblocks_ > 1 ? kGradientBlock * padded_size_ : 0);
    grad_bias_ = arena.take<float>(params_.grad_bias != nullptr ? kPanelsPerSuperblock * kGradientBlock : 0);
    uniform_e_ = arena.take<float>(uniform_apart_ ? padded_size_ : 0);
    uniform_c_ = arena.take<float>(uniform_apart_ ? padded_size_ : 0);
    tiles_ = arena.take<float>(workers * TileGroups::kElements);
    vocab_rows_ = arena.take<Operand>(VocabRows<Engine, T>::elements(kGradientBlock, params_.hidden_size));
    rows_of_c_ = arena.take<const T*>(kGradientBlock);
    rows_of_e_ = arena.take<const T*>(kSuperblock);
    block_.plan(arena);
    positions_.plan(arena);
    work_list_.plan(arena);
    buckets_.plan(arena, params_);
  }

  static auto with_worker_state() {
    return [](int, auto&& run) {
      [[maybe_unused]] typename Engine::WorkerState state;
      run();
    };
  }

  // e in the two forms that products read: by panel for the logits, by column for grad_c.
  void pack_positions() {
    for (int64_t i = 0; i < num_superblocks_; ++i) {
      const Superblock superblock = superblock_at(params_, i);
      for (int64_t j = 0; j < superblock.count; ++j) rows_of_e_[j] = row_of_e<T>(params_, superblock.first + j);
      for_each_item(threads_, superblock.num_panels(), [&](int64_t panel, int) {
        if (params_.stored_logits == nullptr) {
          Engine::pack_transposed(PanelRows<T>(params_, superblock, panel).rows, params_.hidden_size,
                                  panel_of_e(superblock, panel));
        }
        for (int64_t column = 0; wants_c_ && column < num_columns_; ++column) {
          Engine::pack_columns(rows_of_e_ + panel * kBlock, superblock.lanes(panel), column * kBlock,
                               params_.hidden_size, column_of_e(superblock, column) + panel * kTileElements);
        }
      });
    }
  }
  static int64_t panel_bytes(int64_t size) { return size * kBlock * static_cast<int64_t>(sizeof(Operand)); }
  Operand* panel_of_e(const Superblock& superblock, int64_t panel) const {
    return panels_ + (superblock.first + panel * kBlock) * padded_size_;
  }
  Operand* column_of_e(const Superblock& superblock, int64_t column) const {
    return columns_of_e_ + superblock.first * padded_size_ + column * kBlock * superblock.num_panels() * kBlock;
  }

  // The uniform term of label smoothing reaches every vocabulary row, also where the filter drops the tile. Without a
  // softcap it is a product of two vectors: grad_e_t += u_t sum_v w_v c_v and grad_c_v += w_v sum_t u_t e_t.
  void sum_uniform() {
    for_each_item(threads_, num_columns_, [&](int64_t column, int) {
      double over_v[kBlock] = {}, over_t[kBlock] = {};
      const int64_t width = min(params_.hidden_size - column * kBlock, kBlock);
      const float slope = 1.0f / params_.temperature;
      for (int64_t v = 0; v < params_.vocab_size; ++v) {
        const float weight = params_.class_weight != nullptr ? params_.class_weight[v] : 1.0f;
        const T* row = static_cast<const T*>(params_.c) + v * params_.stride_c_row + column * kBlock;
        for (int64_t j = 0; j < width; ++j) over_v[j] += static_cast<double>(weight * slope * to_float(row[j]));
      }
      for (int64_t i = 0; i < params_.num_active; ++i) {
        const float u = params_.grad_sum[params_.active_positions[i]];
        const T* row = row_of_e<T>(params_, i) + column * kBlock;
        for (int64_t j = 0; j < width; ++j) over_t[j] += static_cast<double>(u * slope * to_float(row[j]));
      }
      for (int64_t j = 0; j < kBlock; ++j) {
        uniform_c_[column * kBlock + j] = static_cast<float>(over_v[j]);
        uniform_e_[column * kBlock + j] = static_cast<float>(over_t[j]);
      }
    });
    uniform_bias_ = 0.0;
    for (int64_t i = 0; i < params_.num_active; ++i) {
      uniform_bias_ += static_cast<double>(params_.grad_sum[params_.active_positions[i]] / params_.temperature);
    }
  }

  void run_vocab_block(int64_t vocab_block) {
    const int64_t first_row = vocab_block * kGradientBlock;
    const int64_t num_rows = min(params_.vocab_size - first_row, kGradientBlock);
    for (int64_t i = 0; i < num_rows; ++i) {
      rows_of_c_[i] = static_cast<const T*>(params_.c) + (first_row + i) * params_.stride_c_row;
    }
    pack_vocab_block(first_row, num_rows);
    if (params_.grad_bias != nullptr) start_grad_bias(first_row, num_rows);
    for (int64_t i = 0; i < num_superblocks_; ++i) {
      const Superblock superblock = superblock_at(params_, i);
      if (num_superblocks_ > 1 || vocab_block == 0) {
        buckets_.build(params_, superblock);
        positions_.load(params_, superblock);
      }
      list_work(superblock, first_row, num_rows);
      make_gradient_block(superblock, first_row, num_rows);
      multiply_gradient_block(superblock, vocab_block, num_rows, i);
      if (params_.grad_bias != nullptr) add_grad_bias(superblock, first_row, num_rows);
    }
  }

  void list_work(const Superblock& superblock, int64_t first_row, int64_t num_rows) {
    work_list_.build(ceil_div(num_rows, kBlock), superblock.num_panels(), [&](int64_t tile, int64_t panel) {
      if (params_.kept == nullptr) return true;
      const int64_t vocab_tile = first_row / kBlock + tile;
      return params_.kept[vocab_tile * params_.kept_words + superblock.first / kBlock + panel] != 0 ||
             buckets_.begin(vocab_tile, panel) != buckets_.end(vocab_tile, panel);
    });
  }

  // c in the two forms that products read: by row for the logits, by column for grad_e. Row block by row block, so that
  // c is read once, in its order.
  void pack_vocab_block(int64_t first_row, int64_t num_rows) {
    for_each_item(threads_, ceil_div(num_rows, kBlock), [&](int64_t item, int) {
      if (params_.stored_logits == nullptr) vocab_rows().pack(params_, first_row + item * kBlock, item);
      if (params_.grad_e == nullptr) return;
      const int64_t count = min(num_rows - item * kBlock, kBlock);
      for (int64_t column = 0; column < num_columns_; ++column) {
        Engine::pack_columns(rows_of_c_ + item * kBlock, count, column * kBlock, params_.hidden_size,
                             columns_of_c_ + column * kBlock * kGradientBlock + item * kTileElements);
      }
    });
  }
  VocabRows<Engine, T> vocab_rows() const { return {vocab_rows_, params_.hidden_size}; }

  // dZ of this vocabulary block and superblock.
  void make_gradient_block(const Superblock& superblock, int64_t first_row, int64_t num_rows) {
    const int64_t num_panels = superblock.num_panels();
    const Stretches<Engine> stretches(ceil_div(num_rows, kBlock), params_.hidden_size);
    for_each_item(
        threads_, stretches.count() * num_panels,
        [&](int64_t item, int worker) {
          make_gradient_panel(superblock, first_row, num_rows, item % num_panels, stretches[item / num_panels], worker);
        },
        with_worker_state());
  }

  void make_gradient_panel(const Superblock& superblock, int64_t first_row, int64_t num_rows, int64_t panel,
                           const Stretch& stretch, int worker) {
    float* panel_bias = params_.grad_bias != nullptr ? grad_bias_ + panel * kGradientBlock : nullptr;
    for (int64_t i = stretch.first * kBlock; panel_bias != nullptr && i < stretch.last * kBlock; ++i)
      panel_bias[i] = 0.0f;
    const TileGroups groups = {tiles_ + worker * TileGroups::kElements};
    const int num_steps = static_cast<int>(padded_size_ / kBlock);
    TileGradient<Engine> work(params_, positions_, block_, has_uniform_ && !uniform_apart_);
    const StepList kept = work_list_.tiles(panel, stretch);
    // Workers take panels in turn: the one after the next is as likely this worker's as any.
    const bool has_next = panel + 1 < superblock.num_panels() && params_.stored_logits == nullptr;
    Prefetcher prefetch_panel(has_next ? panel_of_e(superblock, panel + 1) : nullptr, panel_bytes(padded_size_),
                              int64_t{kept.count} * num_steps);
    int parity = 0;
    for (int first = 0; first < kept.count; first += kGroup) {
      const int count = static_cast<int>(min(kept.count - first, kGroup));
      TileGroup group = groups[parity];
      RowOperand<Operand> blocks[kGroup];
      GradientTarget targets[kGroup];
      for (int i = 0; i < count; ++i) {
        const int64_t tile = kept[first + i];
        blocks[i] = vocab_rows().block(tile);
        targets[i] = target_of(superblock, panel, first_row, num_rows, tile, panel_bias);
        if (params_.stored_logits != nullptr) {
          const int64_t vocab_tile = first_row / kBlock + tile;
          group.tiles[i] = params_.stored_logits + (vocab_tile * superblock.num_panels() + panel) * kTileElements;
        }
      }
      if (params_.stored_logits == nullptr) {
        multiply_blocks<Engine>(blocks, group.tiles, count, panel_of_e(superblock, panel), {nullptr, 0, num_steps},
                                false, first / kGroup % 2 == 1, [&] {
                                  work.advance();
                                  prefetch_panel();
                                });
      }
      work.finish();
      work.start(group, targets, count, int64_t{count} * num_steps);
      parity ^= 1;
    }
    work.finish();
  }

  GradientTarget target_of(const Superblock& superblock, int64_t panel, int64_t first_row, int64_t num_rows,
                           int64_t tile, float* panel_bias) const {
    GradientTarget target;
    target.first_index = buckets_.begin(first_row / kBlock + tile, panel);
    target.last_index = buckets_.end(first_row / kBlock + tile, panel);
    target.panel = panel;
    target.vocab_tile = tile;
    target.vocab_row = first_row + tile * kBlock;
    target.rows = static_cast<int>(min(num_rows - tile * kBlock, kBlock));
    target.lanes = static_cast<int>(superblock.lanes(panel));
    target.grad_bias = panel_bias != nullptr ? panel_bias + tile * kBlock : nullptr;
    return target;
  }

  void multiply_gradient_block(const Superblock& superblock, int64_t vocab_block, int64_t num_rows,
                               int64_t superblock_index) {
    const Stretches<Engine> tiles(ceil_div(num_rows, kBlock), kSuperblock);
    const Stretches<Engine> panels(superblock.num_panels(), kGradientBlock);
    const int64_t for_c = wants_c_ ? tiles.count() * num_columns_ : 0;
    const int64_t for_e = params_.grad_e != nullptr ? panels.count() * num_columns_ : 0;
    auto work = [&](int64_t item, int worker) {
      if (item < for_c) {
        multiply_for_c(superblock, vocab_block, tiles[item / num_columns_], superblock_index, item % num_columns_,
                       worker);
      } else {
        multiply_for_e(superblock, vocab_block, panels[(item - for_c) / num_columns_], (item - for_c) % num_columns_);
      }
    };
    for_each_item(threads_, for_c + for_e, work, with_worker_state());
  }

  // grad_c[v, column] over the positions of this superblock; the last superblock stores it.
  void multiply_for_c(const Superblock& superblock, int64_t vocab_block, const Stretch& tiles, int64_t superblock_index,
                      int64_t column, int worker) {
    const bool last = superblock_index == num_superblocks_ - 1;
    Prefetcher prefetch_column(column + 1 < num_columns_ ? column_of_e(superblock, column + 1) : nullptr,
                               panel_bytes(superblock.num_panels() * kBlock),
                               (tiles.last - tiles.first) * superblock.num_panels());
    const int most = work_list_.is_full() ? kMostTogether : 1;
    for (int64_t first = tiles.first; first < tiles.last; first += most) {
      const int count = static_cast<int>(min(tiles.last - first, most));
      RowOperand<Operand> rows[kMostTogether];
      float* outs[kMostTogether];
      for (int i = 0; i < count; ++i) {
        rows[i] = block_.vocab_rows(first + i);
        outs[i] = num_superblocks_ > 1 ? grad_c_ + (column * kGradientBlock + (first + i) * kBlock) * kBlock
                                       : tiles_ + worker * TileGroups::kElements + i * kTileElements;
      }
      multiply_blocks<Engine>(rows, outs, count, column_of_e(superblock, column), work_list_.panels(first),
                              superblock_index > 0, first / most % 2 == 1, prefetch_column);
      for (int i = 0; last && i < count; ++i) {
        store_grad_c(outs[i], vocab_block * kGradientBlock + (first + i) * kBlock, column);
      }
    }
  }

  // grad_e[t, column] over the vocabulary rows of this block.
  void multiply_for_e(const Superblock& superblock, int64_t vocab_block, const Stretch& panels, int64_t column) {
    const int most = work_list_.is_full() ? kMostTogether : 1;
    for (int64_t first = panels.first; first < panels.last; first += most) {
      const int count = static_cast<int>(min(panels.last - first, most));
      const StepList tiles = work_list_.tiles(first);
      if (tiles.count == 0 && vocab_block > 0) continue;
      RowOperand<Operand> rows[kMostTogether];
      float* outs[kMostTogether];
      for (int i = 0; i < count; ++i) {
        rows[i] = block_.position_rows(first + i);
        outs[i] = grad_e_tile(superblock.first + (first + i) * kBlock, column);
      }
      const bool more = first + most < panels.last;
      Prefetcher prefetch_sums(more ? grad_e_tile(superblock.first + (first + most) * kBlock, column) : nullptr,
                               count * kTileElements * static_cast<int64_t>(sizeof(float)),
                               int64_t{count} * tiles.count);
      // Always in one direction: a row's sum must not depend on where in the batch the row lies.
      multiply_blocks<Engine>(rows, outs, count, columns_of_c_ + column * kBlock * kGradientBlock, tiles,
                              vocab_block > 0, false, prefetch_sums);
    }
  }
  float* grad_e_tile(int64_t active, int64_t column) const {
    return grad_e_ + (column * padded_active_ + active) * kBlock;
  }

  void store_grad_c(float* tile, int64_t first_row, int64_t column) const {
    const int64_t num_rows = min(params_.vocab_size - first_row, kBlock);
    for (int64_t r = 0; r < num_rows; ++r) {
      float* from = tile + r * kBlock;
      if (uniform_apart_) {
        const float weight = params_.class_weight != nullptr ? params_.class_weight[first_row + r] : 1.0f;
        add_scaled(weight, uniform_e_ + column * kBlock, from);
      }
      const int64_t row = (first_row + r) * params_.hidden_size;
      if (params_.grad_c_sum != nullptr) {
        add_row(from, params_.grad_c_sum + row, column);
      } else {
        store_row(from, static_cast<T*>(params_.grad_c) + row, column);
      }
    }
  }

  void store_grad_e() {
    for_each_item(threads_, ceil_div(params_.num_active, kBlock), [&](int64_t panel, int) {
      const int64_t end = min((panel + 1) * kBlock, params_.num_active);
      for (int64_t active = panel * kBlock; active < end; ++active) {
        const int64_t position = params_.active_positions[active];
        T* row = static_cast<T*>(params_.grad_e) + (position - params_.shift) * params_.hidden_size;
        for (int64_t column = 0; column < num_columns_; ++column) {
          float* from = grad_e_tile(active, column);
          if (uniform_apart_) add_scaled(params_.grad_sum[position], uniform_c_ + column * kBlock, from);
          store_row(from, row, column);
        }
      }
    });
  }

  static void add_scaled(float factor, const float* from, float* to) {
    for (int j = 0; j < kBlock; j += Vec::kLanes) {
      fma(Vec(factor), Vec::load(from + j), Vec::load(to + j)).store(to + j);
    }
  }
  void store_row(const float* from, T* row, int64_t column) const {
    const int64_t width = min(params_.hidden_size - column * kBlock, kBlock);
    T* to = row + column * kBlock;
    if (width == kBlock) {
      for (int j = 0; j < kBlock; j += Vec::kLanes) Vec::load(from + j).store(to + j);
    } else {
      for (int64_t j = 0; j < width; ++j) from_float(from[j], to + j);
    }
  }

  void add_row(const float* from, float* row, int64_t column) const {
    const int64_t width = min(params_.hidden_size - column * kBlock, kBlock);
    for (int64_t j = 0; j < width; ++j) row[column * kBlock + j] += from[j];
  }

  void start_grad_bias(int64_t first_row, int64_t num_rows) {
    for (int64_t i = 0; i < num_rows; ++i) {
      const float weight = params_.class_weight != nullptr ? params_.class_weight[first_row + i] : 1.0f;
      if (uniform_apart_) params_.grad_bias[first_row + i] += weight * static_cast<float>(uniform_bias_);
    }
  }
  void add_grad_bias(const Superblock& superblock, int64_t first_row, int64_t num_rows) {
    for (int64_t panel = 0; panel < superblock.num_panels(); ++panel) {
      for (int64_t i = 0; i < num_rows; ++i) params_.grad_bias[first_row + i] += grad_bias_[panel * kGradientBlock + i];
    }
  }

  const LinearLogprobsBackwardParams& params_;
  const Threads& threads_;
  int64_t padded_size_, num_columns_, num_superblocks_, padded_active_;
  bool has_uniform_, uniform_apart_, wants_c_;
  double uniform_bias_ = 0.0;
  Operand* panels_ = nullptr;        // [panels][padded_size, 32] e for the logits
  Operand* columns_of_e_ = nullptr;  // [superblocks][columns][positions, 32] e for grad_c
  Operand* columns_of_c_ = nullptr;  // [columns][kGradientBlock, 32] c for grad_e, of the current block
  float* grad_e_ = nullptr;          // [columns][padded_active, 32]
  float* grad_c_ = nullptr;          // [columns][kGradientBlock, 32], of the current block
  float* grad_bias_ = nullptr;       // [panels][kGradientBlock], of the current block and superblock
  float* uniform_e_ = nullptr;       // [padded_size] sum_t u_t e_t
  float* uniform_c_ = nullptr;       // [padded_size] sum_v w_v c_v
  float* tiles_ = nullptr;           // [workers][2 groups][kGroup][32, 32]
  Operand* vocab_rows_ = nullptr;    // [kGradientBlock, row stride] c for the logits, of the current block
  const T** rows_of_c_ = nullptr;    // [kGradientBlock]
  const T** rows_of_e_ = nullptr;    // [kSuperblock]
  GradientBlock<Engine> block_ = {};
  PositionGradients positions_ = {};
  WorkList work_list_;
  IndexBuckets buckets_;
};

template <class Visit>
void with_type(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::kFloat32:
      return visit.template operator()<float>();
    case DType::kFloat16:
      return visit.template operator()<Float16>();
    case DType::kBFloat16:
      return visit.template operator()<BFloat16>();
  }
}

}  // namespace

void linear_logprobs_backward(const LinearLogprobsBackwardParams& params, const Threads& threads) {
  with_type(params.dtype, [&]<class T>() { Backward<typename EngineOf<T>::type, T>(params, threads).run(); });
}

int64_t linear_logprobs_backward_workspace(const LinearLogprobsBackwardParams& params, const Threads& threads) {
  int64_t bytes = 0;
  with_type(params.dtype,
            [&]<class T>() { bytes = Backward<typename EngineOf<T>::type, T>(params, threads).workspace(); });
  return bytes;
}

}  // namespace tokcore::cpu::TOKCORE_ISA
