// One vocabulary block of the backward, by one worker from beginning to end, so that its dZ never leaves that worker's
// cache: recompute the logits, turn them into dZ, multiply dZ with e (grad_c) and with c (grad_e).
#pragma once

#include "tokcore/cpu/prefetch.h"
#include "tokcore/cross_entropy/gradient_tiles.h"

namespace tokcore::cpu::TOKCORE_ISA {

// What all vocabulary blocks of a backward share.
template <class Engine>
struct BackwardShared {
  using Operand = typename Engine::Operand;

  explicit BackwardShared(const LinearLogprobsBackwardParams& params)
      : padded_size(round_up(params.hidden_size, kBlock)),
        num_columns(padded_size / kBlock),
        num_superblocks(ceil_div(params.num_active, kSuperblock)),
        padded_active(round_up(params.num_active, kBlock)),
        wants_c(params.grad_c != nullptr || params.grad_c_sum != nullptr),
        wants_e(params.grad_e != nullptr),
        recomputes(params.stored_logits == nullptr),
        has_uniform(params.grad_sum != nullptr),
        uniform_apart(has_uniform && params.kept != nullptr) {}

  int64_t padded_size, num_columns, num_superblocks, padded_active;
  bool wants_c, wants_e, recomputes;
  bool has_uniform, uniform_apart;
  double uniform_bias = 0.0;
  Operand* panels = nullptr;        // [panels][padded_size, 32] e for the logits
  Operand* columns_of_e = nullptr;  // [superblocks][columns][positions, 32] e for grad_c
  float* grad_e = nullptr;          // [columns][padded_active, 32]
  float* uniform_e = nullptr;       // [padded_size] sum_t u_t e_t
  float* uniform_c = nullptr;       // [padded_size] sum_v w_v c_v
  PositionGradients positions = {};
  IndexBuckets buckets;
  Turns turns;  // of every superblock's columns of grad_e

  void plan(Arena& arena, const LinearLogprobsBackwardParams& params) {
    panels = arena.take<Operand>(recomputes ? padded_active * padded_size : 0);
    columns_of_e = arena.take<Operand>(wants_c ? padded_active * padded_size : 0);
    grad_e = arena.take<float>(wants_e ? padded_active * padded_size : 0);
    uniform_e = arena.take<float>(uniform_apart ? padded_size : 0);
    uniform_c = arena.take<float>(uniform_apart ? padded_size : 0);
    positions.plan(arena, padded_active);
    buckets.plan(arena, params);
    turns = Turns(arena.take<int64_t>(num_turns() * Turns::kElements));
  }
  int64_t num_turns() const { return wants_e ? num_superblocks * num_columns : 0; }

  Operand* panel_of_e(const Superblock& superblock, int64_t panel) const {
    return panels + (superblock.first + panel * kBlock) * padded_size;
  }
  Operand* column_of_e(const Superblock& superblock, int64_t column) const {
    return columns_of_e + superblock.first * padded_size + column * kBlock * superblock.num_panels() * kBlock;
  }
  float* grad_e_tile(int64_t active, int64_t column) const {
    return grad_e + (column * padded_active + active) * kBlock;
  }
};

// A worker's own memory.
template <class Engine, class T>
struct VocabBlockSpace {
  using Operand = typename Engine::Operand;
  Operand* vocab_rows;    // [kGradientBlock, row stride] c for the logits
  Operand* columns_of_c;  // [columns][kGradientBlock, 32] c for grad_e
  float* grad_c;          // [columns][kGradientBlock, 32], with several superblocks
  float* grad_bias;       // [panels][kGradientBlock]
  float* tiles;           // [2 groups][kGroup][32, 32]
  const T** rows_of_c;    // [kGradientBlock]
  GradientBlock<Engine> block;
  WorkList work_list;

  void plan(Arena& arena, const LinearLogprobsBackwardParams& params, const BackwardShared<Engine>& shared) {
    vocab_rows =
        arena.take<Operand>(shared.recomputes ? VocabRows<Engine, T>::elements(kGradientBlock, params.hidden_size) : 0);
    columns_of_c = arena.take<Operand>(shared.wants_e ? kGradientBlock * shared.padded_size : 0);
    grad_c = arena.take<float>(shared.wants_c && shared.num_superblocks > 1 ? kGradientBlock * shared.padded_size : 0);
    grad_bias = arena.take<float>(params.grad_bias != nullptr ? kPanelsPerSuperblock * kGradientBlock : 0);
    tiles = arena.take<float>(TileGroups::kElements);
    rows_of_c = arena.take<const T*>(kGradientBlock);
    block.plan(arena);
    work_list.plan(arena);
  }
};

template <class Engine, class T>
class VocabBlockGradient {
 public:
  using Operand = typename Engine::Operand;

  VocabBlockGradient(const LinearLogprobsBackwardParams& params, const BackwardShared<Engine>& shared,
                     VocabBlockSpace<Engine, T>& space, int64_t vocab_block)
      : params_(params),
        shared_(shared),
        space_(space),
        vocab_block_(vocab_block),
        first_row_(vocab_block * kGradientBlock),
        num_rows_(min(params.vocab_size - first_row_, kGradientBlock)),
        num_tiles_(ceil_div(num_rows_, kBlock)) {}

  void run() {
    pack();
    if (params_.grad_bias != nullptr) start_grad_bias();
    for (int64_t i = 0; i < shared_.num_superblocks; ++i) {
      const Superblock superblock = superblock_at(params_, i);
      list_work(superblock);
      make_gradient_block(superblock);
      multiply_gradient_block(superblock, i);
      if (params_.grad_bias != nullptr) add_grad_bias(superblock);
    }
  }

 private:
  static int64_t panel_bytes(int64_t size) { return size * kBlock * static_cast<int64_t>(sizeof(Operand)); }
  VocabRows<Engine, T> vocab_rows() const { return {space_.vocab_rows, params_.hidden_size}; }
  int64_t first_tile() const { return first_row_ / kBlock; }
  // Row blocks of a product that go through L1 together: with a full work list all of them walk the same steps.
  int row_blocks_together() const { return space_.work_list.is_full() ? kMostTogether : 1; }

  // c in the two forms that products read: by row for the logits, by column for grad_e. Row block by row block, so that
  // c is read once, in its order.
  void pack() {
    for (int64_t i = 0; i < num_rows_; ++i) {
      space_.rows_of_c[i] = static_cast<const T*>(params_.c) + (first_row_ + i) * params_.stride_c_row;
    }
    for (int64_t tile = 0; tile < num_tiles_; ++tile) {
      if (shared_.recomputes) vocab_rows().pack(params_, first_row_ + tile * kBlock, tile);
      const int64_t count = min(num_rows_ - tile * kBlock, kBlock);
      for (int64_t column = 0; shared_.wants_e && column < shared_.num_columns; ++column) {
        Engine::pack_columns(space_.rows_of_c + tile * kBlock, count, column * kBlock, params_.hidden_size,
                             column_of_c(column) + tile * kTileElements);
      }
    }
  }
  Operand* column_of_c(int64_t column) const { return space_.columns_of_c + column * kBlock * kGradientBlock; }

  void list_work(const Superblock& superblock) {
    space_.work_list.build(num_tiles_, superblock.num_panels(), [&](int64_t tile, int64_t panel) {
      if (params_.kept == nullptr) return true;
      const int64_t vocab_tile = first_tile() + tile;
      return params_.kept[vocab_tile * params_.kept_words + superblock.first / kBlock + panel] != 0 ||
             !shared_.buckets.in_panel(vocab_tile, superblock.first + panel * kBlock).empty();
    });
  }

  // dZ of the superblock. Panels outermost within a stretch of rows that stays in L2.
  void make_gradient_block(const Superblock& superblock) {
    TileGradient<Engine> work(params_, shared_.positions.from(superblock.first), space_.block,
                              shared_.has_uniform && !shared_.uniform_apart);
    const Stretches<Engine> stretches(num_tiles_, params_.hidden_size);
    int parity = 0;
    for (int64_t i = 0; i < stretches.count(); ++i) {
      for (int64_t panel = 0; panel < superblock.num_panels(); ++panel) {
        make_gradient_panel(superblock, panel, stretches[i], work, parity);
      }
    }
    work.finish();
  }

  void make_gradient_panel(const Superblock& superblock, int64_t panel, const Stretch& stretch,
                           TileGradient<Engine>& work, int& parity) {
    float* panel_bias = params_.grad_bias != nullptr ? space_.grad_bias + panel * kGradientBlock : nullptr;
    for (int64_t i = stretch.first * kBlock; panel_bias != nullptr && i < stretch.last * kBlock; ++i)
      panel_bias[i] = 0.0f;
    const TileGroups groups = {space_.tiles};
    const int num_steps = static_cast<int>(shared_.padded_size / kBlock);
    const StepList kept = space_.work_list.tiles(panel, stretch);
    const bool has_next = panel + 1 < superblock.num_panels() && shared_.recomputes;
    Prefetcher prefetch_panel(has_next ? shared_.panel_of_e(superblock, panel + 1) : nullptr,
                              panel_bytes(shared_.padded_size), int64_t{kept.count} * num_steps);
    for (int first = 0; first < kept.count; first += kGroup) {
      const int count = static_cast<int>(min(kept.count - first, kGroup));
      TileGroup group = groups[parity];
      RowOperand<Operand> blocks[kGroup];
      GradientTarget targets[kGroup];
      for (int i = 0; i < count; ++i) {
        const int64_t tile = kept[first + i];
        blocks[i] = vocab_rows().block(tile);
        targets[i] = target_of(superblock, panel, tile, panel_bias);
        if (!shared_.recomputes) {
          group.tiles[i] =
              params_.stored_logits + ((first_tile() + tile) * superblock.num_panels() + panel) * kTileElements;
        }
      }
      if (shared_.recomputes) {
        multiply_blocks<Engine>(blocks, group.tiles, count, shared_.panel_of_e(superblock, panel),
                                {nullptr, 0, num_steps}, false, first / kGroup % 2 == 1, [&] {
                                  work.advance();
                                  prefetch_panel();
                                });
      }
      work.finish();
      work.start(group, targets, count, int64_t{count} * num_steps);
      parity ^= 1;
    }
  }

  GradientTarget target_of(const Superblock& superblock, int64_t panel, int64_t tile, float* panel_bias) const {
    GradientTarget target;
    target.indices = shared_.buckets.in_panel(first_tile() + tile, superblock.first + panel * kBlock);
    target.panel = panel;
    target.vocab_tile = tile;
    target.vocab_row = first_row_ + tile * kBlock;
    target.rows = static_cast<int>(min(num_rows_ - tile * kBlock, kBlock));
    target.lanes = static_cast<int>(superblock.lanes(panel));
    target.grad_bias = panel_bias != nullptr ? panel_bias + tile * kBlock : nullptr;
    return target;
  }

  // The two products, column by column. A column of grad_e may have to wait for the block before this one: meanwhile
  // there are columns of grad_c to do.
  void multiply_gradient_block(const Superblock& superblock, int64_t superblock_index) {
    int64_t next_c = shared_.wants_c ? 0 : shared_.num_columns;
    int64_t next_e = shared_.wants_e ? 0 : shared_.num_columns;
    while (next_c < shared_.num_columns || next_e < shared_.num_columns) {
      const int64_t turn = superblock_index * shared_.num_columns + next_e;
      const bool waits = next_e == shared_.num_columns || !shared_.turns.has_come(turn, vocab_block_);
      if (waits && next_c < shared_.num_columns) {
        multiply_for_c(superblock, superblock_index, next_c++);
      } else {
        shared_.turns.wait(turn, vocab_block_);
        multiply_for_e(superblock, next_e++);
        shared_.turns.pass_on(turn, vocab_block_);
      }
    }
  }

  // grad_c over the positions of this superblock; the last superblock stores it.
  void multiply_for_c(const Superblock& superblock, int64_t superblock_index, int64_t column) {
    const bool last = superblock_index == shared_.num_superblocks - 1;
    const int most = row_blocks_together();
    const bool has_next = column + 1 < shared_.num_columns;
    Prefetcher prefetch_column(has_next ? shared_.column_of_e(superblock, column + 1) : nullptr,
                               panel_bytes(superblock.num_panels() * kBlock), num_tiles_ * superblock.num_panels());
    for (int64_t first = 0; first < num_tiles_; first += most) {
      const int count = static_cast<int>(min(num_tiles_ - first, most));
      RowOperand<Operand> rows[kMostTogether];
      float* outs[kMostTogether];
      for (int i = 0; i < count; ++i) {
        rows[i] = space_.block.vocab_rows(first + i);
        outs[i] = shared_.num_superblocks > 1
                      ? space_.grad_c + (column * kGradientBlock + (first + i) * kBlock) * kBlock
                      : space_.tiles + i * kTileElements;
      }
      multiply_blocks<Engine>(rows, outs, count, shared_.column_of_e(superblock, column),
                              space_.work_list.panels(first), superblock_index > 0, first / most % 2 == 1,
                              prefetch_column);
      for (int i = 0; last && i < count; ++i) store_grad_c(outs[i], first_row_ + (first + i) * kBlock, column);
    }
  }

  void store_grad_c(float* tile, int64_t first_row, int64_t column) const {
    const int64_t num_rows = min(params_.vocab_size - first_row, kBlock);
    for (int64_t r = 0; r < num_rows; ++r) {
      float* from = tile + r * kBlock;
      if (shared_.uniform_apart) {
        const float weight = params_.class_weight != nullptr ? params_.class_weight[first_row + r] : 1.0f;
        add_scaled(weight, shared_.uniform_e + column * kBlock, from);
      }
      const int64_t row = (first_row + r) * params_.hidden_size;
      if (params_.grad_c_sum != nullptr) {
        add_columns(from, params_.grad_c_sum + row, column, params_.hidden_size);
      } else {
        store_columns(from, static_cast<T*>(params_.grad_c) + row, column, params_.hidden_size);
      }
    }
  }

  // grad_e += over the vocabulary rows of this block.
  void multiply_for_e(const Superblock& superblock, int64_t column) {
    const int most = row_blocks_together();
    for (int64_t first = 0; first < superblock.num_panels(); first += most) {
      const int count = static_cast<int>(min(superblock.num_panels() - first, most));
      const StepList tiles = space_.work_list.tiles(first);
      if (tiles.count == 0 && vocab_block_ > 0) continue;
      RowOperand<Operand> rows[kMostTogether];
      float* outs[kMostTogether];
      for (int i = 0; i < count; ++i) {
        rows[i] = space_.block.position_rows(first + i);
        outs[i] = shared_.grad_e_tile(superblock.first + (first + i) * kBlock, column);
      }
      const bool more = first + most < superblock.num_panels();
      Prefetcher prefetch_sums(more ? shared_.grad_e_tile(superblock.first + (first + most) * kBlock, column) : nullptr,
                               count * kTileElements * static_cast<int64_t>(sizeof(float)),
                               int64_t{count} * tiles.count);
      // Always in one direction: a row's sum must not depend on where in the batch the row lies.
      multiply_blocks<Engine>(rows, outs, count, column_of_c(column), tiles, vocab_block_ > 0, false, prefetch_sums);
    }
  }

  void start_grad_bias() {
    for (int64_t i = 0; i < num_rows_; ++i) {
      const float weight = params_.class_weight != nullptr ? params_.class_weight[first_row_ + i] : 1.0f;
      if (shared_.uniform_apart) {
        params_.grad_bias[first_row_ + i] += weight * static_cast<float>(shared_.uniform_bias);
      }
    }
  }
  void add_grad_bias(const Superblock& superblock) {
    for (int64_t panel = 0; panel < superblock.num_panels(); ++panel) {
      for (int64_t i = 0; i < num_rows_; ++i)
        params_.grad_bias[first_row_ + i] += space_.grad_bias[panel * kGradientBlock + i];
    }
  }

  const LinearLogprobsBackwardParams& params_;
  const BackwardShared<Engine>& shared_;
  VocabBlockSpace<Engine, T>& space_;
  int64_t vocab_block_, first_row_, num_rows_, num_tiles_;
};

}  // namespace tokcore::cpu::TOKCORE_ISA
