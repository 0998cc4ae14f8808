// What the backward holds of dZ: one vocabulary block by one superblock, made tile by tile, and which of its tiles
// there are.
#pragma once

#include "tokcore/cross_entropy/logits_tiles.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Vocabulary rows whose dZ a worker has in memory at a time. Every block costs one read and write of the sums of
// grad_e; both forms of its dZ fit into 2 MB of L2.
inline constexpr int64_t kGradientBlock = 256;
inline constexpr int64_t kTilesPerBlock = kGradientBlock / kBlock;

// Row blocks of a gradient product that share each pass of a panel through L1.
inline constexpr int kMostTogether = 4;
static_assert(kMostTogether <= 2 * kGroup, "a worker's tiles hold them");

// Column block `column` of a row of size `hidden_size`: 32 values stored, added, or scaled and added.
template <class T>
void store_columns(const float* from, T* row, int64_t column, int64_t hidden_size) {
  const int64_t width = min(hidden_size - column * kBlock, kBlock);
  T* to = row + column * kBlock;
  if (width == kBlock) {
    for (int j = 0; j < kBlock; j += Vec::kLanes) Vec::load(from + j).store(to + j);
  } else {
    for (int64_t j = 0; j < width; ++j) from_float(from[j], to + j);
  }
}
inline void add_columns(const float* from, float* row, int64_t column, int64_t hidden_size) {
  const int64_t width = min(hidden_size - column * kBlock, kBlock);
  for (int64_t j = 0; j < width; ++j) row[column * kBlock + j] += from[j];
}
inline void add_scaled(float factor, const float* from, float* to) {
  for (int j = 0; j < kBlock; j += Vec::kLanes) {
    fma(Vec(factor), Vec::load(from + j), Vec::load(to + j)).store(to + j);
  }
}

// A part of a block's tiles whose operand stays in L2.
struct Stretch {
  int64_t first;
  int64_t last;
};
// Cuts `count` row blocks, whose rows have `size` elements, into stretches.
template <class Engine>
class Stretches {
 public:
  Stretches(int64_t count, int64_t size) : count_(count), length_(row_blocks_in_l2<Engine>(size, 16)) {}
  int64_t count() const { return ceil_div(count_, length_); }
  Stretch operator[](int64_t index) const { return {index * length_, min((index + 1) * length_, count_)}; }

 private:
  int64_t count_;
  int64_t length_;
};

// dZ of one vocabulary block and superblock, in the forms that the two gradient products want of their first operand.
template <class Engine>
struct GradientBlock {
  using Operand = typename Engine::Operand;
  // Odd multiples of a cache line keep the rows of a tile out of one another's cache sets.
  static constexpr int64_t kRowStride = kSuperblock + kBlock;
  static constexpr int64_t kColumnStride = kGradientBlock + kBlock;
  Operand* by_vocab;     // [kGradientBlock][kRowStride], for grad_c
  Operand* by_position;  // [kSuperblock][kColumnStride], for grad_e

  void plan(Arena& arena) {
    by_vocab = arena.take<Operand>(kGradientBlock * kRowStride);
    by_position = arena.take<Operand>(kSuperblock * kColumnStride);
  }
  RowOperand<Operand> vocab_rows(int64_t tile) const { return {by_vocab + tile * kBlock * kRowStride, kRowStride}; }
  RowOperand<Operand> position_rows(int64_t panel) const {
    return {by_position + panel * kBlock * kColumnStride, kColumnStride};
  }

  void store_by_vocab(const float* tile, int64_t vocab_tile, int64_t panel, int first_row, int num_rows) const {
    for (int r = first_row; r < first_row + num_rows; ++r) {
      Operand* to = by_vocab + (vocab_tile * kBlock + r) * kRowStride + panel * kBlock;
      Engine::store_row(tile + r * kBlock, to);
    }
  }
  // half: positions 0-15 or 16-31 of the panel.
  void store_by_position(const float* tile, int64_t vocab_tile, int64_t panel, int half) const {
    Operand* to = by_position + (panel * kBlock + half * kBlock / 2) * kColumnStride + vocab_tile * kBlock;
    Engine::store_transposed_half(tile + half * kBlock / 2, to, kColumnStride);
  }
};

// Per active position, in lanes; lanes past the end give dZ = 0.
struct PositionGradients {
  float* lse;
  float* grad_prob;
  float* grad_plogp;
  float* grad_sum;

  void plan(Arena& arena, int64_t padded_active) {
    lse = arena.take<float>(padded_active);
    grad_prob = arena.take<float>(padded_active);
    grad_plogp = arena.take<float>(padded_active);
    grad_sum = arena.take<float>(padded_active);
  }
  void load(const LinearLogprobsBackwardParams& params, int64_t padded_active) const {
    for (int64_t i = 0; i < padded_active; ++i) {
      const bool present = i < params.num_active;
      const int64_t position = present ? params.active_positions[i] : 0;
      lse[i] = present ? params.lse[position] : __builtin_inff();
      grad_prob[i] = present ? params.grad_prob[position] : 0.0f;
      grad_plogp[i] = present && params.grad_plogp != nullptr ? params.grad_plogp[position] : 0.0f;
      grad_sum[i] = present && params.grad_sum != nullptr ? params.grad_sum[position] : 0.0f;
    }
  }
  PositionGradients from(int64_t active) const {
    return {lse + active, grad_prob + active, grad_plogp + active, grad_sum + active};
  }
};

// Where the gradient of one tile goes.
struct GradientTarget {
  IndexBuckets::Range indices;
  int64_t panel;
  int64_t vocab_tile;  // in its vocabulary block
  int64_t vocab_row;   // of the tile's first row
  int rows;            // inside the vocabulary
  int lanes;           // that hold positions
  float* grad_bias;    // [32] sums over the panel's positions, or null
};

// Turns tiles of products e c^T into dZ.
template <class Engine>
class TileGradient : public WovenWork<TileGradient<Engine>, GradientTarget> {
 public:
  TileGradient(const LinearLogprobsBackwardParams& params, const PositionGradients& positions,
               const GradientBlock<Engine>& block, bool uniform_inside)
      : params_(params),
        transform_(params),
        positions_(positions),
        block_(block),
        filters_(params.kept != nullptr),
        uniform_inside_(uniform_inside) {}

  // Differentiate; add what indices ask for; store rows; store columns. Even portions keep the matrix unit fed.
  int num_portions(const GradientTarget&) const { return kRowPortions + 1 + kStorePortions + 2; }

  void run(float* tile, const GradientTarget& target, int portion) {
    if (portion < kRowPortions) return differentiate_rows(tile, target, portion * kRowsPerPortion);
    portion -= kRowPortions;
    if (portion == 0) {
      add_indices(tile, target);
      if (target.lanes < kBlock) clear_lanes(tile, target.lanes);
      if (target.grad_bias != nullptr) add_bias(tile, target);
    } else if (portion <= kStorePortions) {
      block_.store_by_vocab(tile, target.vocab_tile, target.panel, (portion - 1) * kRowsPerStore, kRowsPerStore);
    } else {
      block_.store_by_position(tile, target.vocab_tile, target.panel, portion - kStorePortions - 1);
    }
  }

 private:
  static constexpr int kRowsPerPortion = 2;
  static constexpr int kRowPortions = kBlock / kRowsPerPortion;
  static constexpr int kRowsPerStore = 8;
  static constexpr int kStorePortions = kBlock / kRowsPerStore;

  void differentiate_rows(float* tile, const GradientTarget& target, int first) {
    for (int r = first; r < first + kRowsPerPortion; ++r) {
      const bool inside = r < target.rows;
      const int64_t vocab_row = target.vocab_row + r;
      const bool weighted = params_.class_weight != nullptr && inside;
      const Vec weight(weighted ? params_.class_weight[vocab_row] : 1.0f);
      for (int i = 0; i < kVecsPerRow; ++i) {
        float* cells = tile + r * kBlock + i * Vec::kLanes;
        const int64_t at = target.panel * kBlock + i * Vec::kLanes;
        (inside ? differentiate(Vec::load(cells), at, vocab_row, weight) : Vec(0.0f)).store(cells);
      }
    }
  }

  Vec differentiate(Vec product, int64_t at, int64_t vocab_row, Vec weight) const {
    const Vec z = params_.stored_logits != nullptr ? product : transform_.logit(product, vocab_row);
    const Vec log_p = z - Vec::load(positions_.lse + at);
    Vec factor = Vec::load(positions_.grad_prob + at);
    if (params_.grad_plogp != nullptr) {
      factor = fma(Vec::load(positions_.grad_plogp + at), max(Vec(-200.0f), log_p), factor);
    }
    Vec gradient = exp(log_p) * factor;
    if (filters_) gradient = zero_unless(not_less(log_p, Vec(params_.filter_log_eps)), gradient);
    if (uniform_inside_) gradient = fma(Vec::load(positions_.grad_sum + at), weight, gradient);
    return transform_.is_linear() ? gradient : gradient * transform_.slope(z);
  }

  void add_indices(float* tile, const GradientTarget& target) {
    for (const IndexBuckets::Entry* entry = target.indices.first; entry != target.indices.last; ++entry) {
      const int64_t at = params_.active_positions[entry->active] * params_.num_indices + entry->k;
      tile[entry->cell] += params_.grad_logits[at] * transform_.slope(params_.logits[at]);
    }
  }

  // A lane without a position holds 0 times whatever is in c, which may be NaN.
  static void clear_lanes(float* tile, int lanes) {
    for (int r = 0; r < kBlock; ++r) {
      for (int lane = lanes; lane < kBlock; ++lane) tile[r * kBlock + lane] = 0.0f;
    }
  }

  void add_bias(const float* tile, const GradientTarget& target) {
    for (int r = 0; r < target.rows; ++r) {
      float sum = 0.0f;
      for (int lane = 0; lane < kBlock; ++lane) sum += tile[r * kBlock + lane];
      target.grad_bias[r] = sum;
    }
  }

  const LinearLogprobsBackwardParams& params_;
  LogitTransform transform_;
  PositionGradients positions_;  // from the superblock's first
  GradientBlock<Engine> block_;
  bool filters_, uniform_inside_;
};

// Which tiles of a vocabulary block and superblock hold a gradient, as lists of steps for the two products.
class WorkList {
 public:
  void plan(Arena& arena) {
    tiles_of_panel_ = arena.take<int32_t>(kPanelsPerSuperblock * kTilesPerBlock);
    panels_of_tile_ = arena.take<int32_t>(kPanelsPerSuperblock * kTilesPerBlock);
  }
  template <class IsKept>
  void build(int64_t num_tiles, int64_t num_panels, IsKept&& is_kept) {
    is_full_ = true;
    for (int64_t tile = 0; tile < kTilesPerBlock; ++tile) num_panels_[tile] = 0;
    for (int64_t panel = 0; panel < kPanelsPerSuperblock; ++panel) num_tiles_[panel] = 0;
    for (int32_t tile = 0; tile < num_tiles; ++tile) {
      for (int32_t panel = 0; panel < num_panels; ++panel) {
        if (!is_kept(tile, panel)) {
          is_full_ = false;
          continue;
        }
        panels_of_tile_[tile * kPanelsPerSuperblock + num_panels_[tile]++] = panel;
        tiles_of_panel_[panel * kTilesPerBlock + num_tiles_[panel]++] = tile;
      }
    }
  }
  bool is_full() const { return is_full_; }
  StepList panels(int64_t tile) const { return {panels_of_tile_ + tile * kPanelsPerSuperblock, 0, num_panels_[tile]}; }
  StepList tiles(int64_t panel, const Stretch& stretch) const {
    StepList part = tiles(panel);
    while (part.count > 0 && part[0] < stretch.first) {
      ++part.first;
      --part.count;
    }
    while (part.count > 0 && part[part.count - 1] >= stretch.last) --part.count;
    return part;
  }
  StepList tiles(int64_t panel) const { return {tiles_of_panel_ + panel * kTilesPerBlock, 0, num_tiles_[panel]}; }

 private:
  int32_t* tiles_of_panel_ = nullptr;  // [kPanelsPerSuperblock][kTilesPerBlock]
  int32_t* panels_of_tile_ = nullptr;  // [kTilesPerBlock][kPanelsPerSuperblock]
  bool is_full_ = true;                // all products walk the same steps
  int32_t num_panels_[kTilesPerBlock];
  int32_t num_tiles_[kPanelsPerSuperblock];
};

}  // namespace tokcore::cpu::TOKCORE_ISA
