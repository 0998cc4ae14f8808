// How the forward and the backward walk the T x V matrix of logits that nobody holds: in tiles of 32 vocabulary rows by
// 32 positions, the positions in lanes, so that statistics need no work across lanes.
//
//   superblock   1024 active positions whose packed rows of e are in memory at a time
//   panel        32 active positions, packed as the second operand of a block product
//   vocabulary block   512 rows of c: the unit of partial statistics and of gradient chunks. Its boundaries depend on V
//                alone and every sum is taken in vocabulary order, so a row's result depends neither on the thread
//                count nor on the other rows of the batch.
#pragma once

#include "tokcore/cpu/block_product.h"
#include "tokcore/cpu/math.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/cross_entropy/linear_logprobs.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr int64_t kSuperblock = 1024;
inline constexpr int64_t kPanelsPerSuperblock = kSuperblock / kBlock;
inline constexpr int64_t kVocabBlock = 512;
inline constexpr int64_t kTilesPerVocabBlock = kVocabBlock / kBlock;
inline constexpr int kVecsPerRow = kBlock / Vec::kLanes;
inline constexpr int kTileElements = kBlock * kBlock;

// The active positions [first, first + count) of a superblock.
struct Superblock {
  int64_t first;
  int64_t count;
  int64_t num_panels() const { return ceil_div(count, kBlock); }
  int64_t lanes(int64_t panel) const { return min(count - panel * kBlock, kBlock); }
};

inline Superblock superblock_at(const LinearLogitsParams& params, int64_t index) {
  const int64_t first = index * kSuperblock;
  return {first, min(params.num_active - first, kSuperblock)};
}

template <class T>
const T* row_of_e(const LinearLogitsParams& params, int64_t active) {
  const int64_t row = params.active_positions[active] - params.shift;
  return static_cast<const T*>(params.e) + row * params.stride_e_row;
}

// Pointers to the rows of one panel; null past its end.
template <class T>
struct PanelRows {
  const T* rows[kBlock];
  PanelRows(const LinearLogitsParams& params, const Superblock& superblock, int64_t panel) {
    const int64_t lanes = superblock.lanes(panel);
    for (int64_t i = 0; i < kBlock; ++i) {
      rows[i] = i < lanes ? row_of_e<T>(params, superblock.first + panel * kBlock + i) : nullptr;
    }
  }
};

// Rows of c, packed as the first operand of block products.
template <class Engine, class T>
class VocabRows {
 public:
  using Operand = typename Engine::Operand;

  VocabRows() = default;
  VocabRows(Operand* data, int64_t hidden_size) : data_(data), stride_(row_operand_stride(hidden_size)) {}

  static int64_t elements(int64_t num_rows, int64_t hidden_size) {
    return round_up(num_rows, kBlock) * row_operand_stride(hidden_size);
  }
  // Packs vocabulary rows [row, row + 32) as block `index`.
  void pack(const LinearLogitsParams& params, int64_t row, int64_t index) const {
    const T* source = static_cast<const T*>(params.c) + row * params.stride_c_row;
    Engine::pack_rows(source, params.stride_c_row, min(params.vocab_size - row, kBlock), params.hidden_size,
                      data_ + index * kBlock * stride_, stride_);
  }
  RowOperand<Operand> block(int64_t index) const { return {data_ + index * kBlock * stride_, stride_}; }

 private:
  Operand* data_ = nullptr;
  int64_t stride_ = 0;
};

// Where indices[t, k] lie, sorted by vocabulary tile and position: a sweep reads or changes those logits as it passes.
class IndexBuckets {
 public:
  struct Entry {
    int32_t cell;    // row * 32 + lane inside the tile
    int32_t active;  // active position
    int32_t k;
  };
  struct Range {
    const Entry* first;
    const Entry* last;
    bool empty() const { return first == last; }
  };

  void plan(Arena& arena, const LinearLogitsParams& params) {
    num_tiles_ = ceil_div(params.vocab_size, kBlock);
    starts_ = arena.take<int64_t>(num_tiles_ + 1);
    entries_ = arena.take<Entry>(params.num_active * params.num_indices);
  }

  void build(const LinearLogitsParams& params) {
    for (int64_t i = 0; i <= num_tiles_; ++i) starts_[i] = 0;
    for_each_index_backwards(params, [&](int64_t tile, Entry) { ++starts_[tile]; });
    int64_t end = 0;
    for (int64_t i = 0; i <= num_tiles_; ++i) starts_[i] = end += starts_[i];
    // Filling from the back leaves each start where its tile begins, entries in the order of positions.
    for_each_index_backwards(params, [&](int64_t tile, Entry entry) { entries_[--starts_[tile]] = entry; });
  }

  // The entries in vocabulary tile `tile` of the active positions [first_active, first_active + 32).
  Range in_panel(int64_t tile, int64_t first_active) const {
    return {from_active(tile, first_active), from_active(tile, first_active + kBlock)};
  }

 private:
  template <class Visit>
  static void for_each_index_backwards(const LinearLogitsParams& params, Visit&& visit) {
    for (int64_t i = params.num_active - 1; i >= 0; --i) {
      const int64_t position = params.active_positions[i];
      for (int64_t k = params.num_indices - 1; k >= 0; --k) {
        const int64_t row = params.indices[position * params.num_indices + k];
        visit(row / kBlock, Entry{static_cast<int32_t>(row % kBlock * kBlock + i % kBlock), static_cast<int32_t>(i),
                                  static_cast<int32_t>(k)});
      }
    }
  }
  // The first entry of a tile at or past an active position.
  const Entry* from_active(int64_t tile, int64_t active) const {
    int64_t low = starts_[tile], high = starts_[tile + 1];
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (entries_[middle].active < active) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return entries_ + low;
  }

  int64_t num_tiles_ = 0;
  int64_t* starts_ = nullptr;  // [tiles + 1]
  Entry* entries_ = nullptr;
};

// From the block product to logits: bias, softcap and temperature, and -inf in the rows past the vocabulary.
class LogitTransform {
 public:
  explicit LogitTransform(const LinearLogitsParams& params)
      : bias_(params.bias),
        softcap_(params.softcap),
        inverse_softcap_(params.softcap > 0.0f ? 1.0f / params.softcap : 0.0f),
        inverse_temperature_(1.0f / params.temperature),
        slope_factor_(params.softcap > 0.0f ? params.temperature / params.softcap : 0.0f) {}

  bool is_identity() const { return bias_ == nullptr && softcap_ == 0.0f && inverse_temperature_ == 1.0f; }

  // dz is d(e c^T + bias): the slope is 1 everywhere.
  bool is_linear() const { return softcap_ == 0.0f && inverse_temperature_ == 1.0f; }

  Vec logit(Vec product, int64_t vocab_row) const {
    if (bias_ != nullptr) product += Vec(bias_[vocab_row]);
    if (softcap_ > 0.0f) product = Vec(softcap_) * tanh(product * Vec(inverse_softcap_));
    return product * Vec(inverse_temperature_);
  }

  // dz / d(e c^T + bias) at z.
  Vec slope(Vec z) const {
    if (softcap_ == 0.0f) return Vec(inverse_temperature_);
    const Vec capped = z * Vec(slope_factor_);
    return (Vec(1.0f) - capped * capped) * Vec(inverse_temperature_);
  }
  float slope(float z) const {
    if (softcap_ == 0.0f) return inverse_temperature_;
    const float capped = z * slope_factor_;
    return (1.0f - capped * capped) * inverse_temperature_;
  }

 private:
  const float* bias_;
  float softcap_, inverse_softcap_, inverse_temperature_, slope_factor_;
};

// Tiles are made in groups: two share each pass of a panel through L1, and there is room in L1 for two groups of tiles,
// one being made and one being worked on.
inline constexpr int kGroup = 2;

struct TileGroup {
  float* tiles[kGroup];
};
struct TileGroups {
  static constexpr int64_t kElements = 2 * kGroup * kTileElements;
  float* data;
  TileGroup operator[](int parity) const {
    TileGroup group;
    for (int i = 0; i < kGroup; ++i) group.tiles[i] = data + (parity * kGroup + i) * kTileElements;
    return group;
  }
};

// Work on a finished group of tiles, cut into small portions that the products of the next group weave in between their
// steps. Derived classes supply Target, num_portions(target) and run(tile, target, portion).
template <class Derived, class Target>
class WovenWork {
 public:
  // Tiles reach memory some time after their product; reading them at once would stall everything behind it.
  static constexpr int kStepsOfDelay = 2;

  void start(const TileGroup& group, const Target* targets, int count, int64_t steps_to_come) {
    group_ = group;
    count_ = count;
    tile_ = 0;
    portion_ = 0;
    portions_ = 0;
    for (int i = 0; i < count; ++i) {
      targets_[i] = targets[i];
      portions_ += self().num_portions(targets[i]);
    }
    steps_ = static_cast<int>(max(steps_to_come - kStepsOfDelay, 1));
    credit_ = -kStepsOfDelay * portions_;
  }
  // Spreads the portions evenly over the steps.
  void advance() {
    credit_ += portions_;
    while (credit_ >= steps_ && tile_ < count_) {
      credit_ -= steps_;
      run_next();
    }
  }
  void finish() {
    while (tile_ < count_) run_next();
  }

 private:
  Derived& self() { return static_cast<Derived&>(*this); }
  void run_next() {
    self().run(group_.tiles[tile_], targets_[tile_], portion_);
    if (++portion_ == self().num_portions(targets_[tile_])) {
      portion_ = 0;
      ++tile_;
    }
  }

  TileGroup group_;
  Target targets_[kGroup];
  int count_ = 0;
  int tile_ = 0;
  int portion_ = 0;
  int portions_ = 0;
  int steps_ = 1;
  int credit_ = 0;
};

}  // namespace tokcore::cpu::TOKCORE_ISA
