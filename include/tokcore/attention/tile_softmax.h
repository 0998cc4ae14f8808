// The online softmax of attention on tiles of 32 keys by 32 queries, the queries in lanes. Making the weights is cut
// into portions, so that a product can take one after each of its steps.
//
// Weights are exp(scale (score - reference)). The reference of a query is the maximum of its first tile. Later tiles
// are not searched for their maximum: where the sum of a tile's weights shows that its scores are far above the
// reference, the reference is raised, what was summed so far shrinks, and the tile's weights are made once more.
#pragma once

#include "tokcore/attention/operand_tiles.h"
#include "tokcore/cpu/math.h"
#include "tokcore/cpu/online_softmax.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr float kMostTileSum = 8192.0f;  // some weight is above 256 where it is exceeded

// Two tiles of scores lie side by side, so that one can be read while the other is being stored (block_product.h).
inline constexpr int64_t kScoreStride = 2 * kBlock;

// Lanes at and after `first` of the vector that starts at lane `start`.
inline Mask lanes_from(int64_t first, int64_t start) {
  const int64_t shift = min(max(first - start, 0), Vec::kLanes);
  return Mask::from_bits(((1u << Vec::kLanes) - 1) >> shift << shift);
}

// Which cells of a tile count: rows below num_rows, and of row r the lanes at and after first_lane + r.
struct TileBounds {
  int64_t num_rows;
  int64_t first_lane;

  static TileBounds of(const AttentionShape& shape, bool causal, int64_t first_query, int64_t tile) {
    const int64_t first_key = tile * kBlock;
    return {min(shape.key_length - first_key, kBlock),
            causal ? first_key - first_query - shape.causal_offset() : -int64_t{kBlock}};
  }
  bool cuts() const { return num_rows < kBlock || first_lane > -kBlock + 1; }
  void clear(float* tile, int row) const {
    for (int i = 0; i < kVecsPerRow; ++i) {
      float* cells = tile + row * kScoreStride + i * Vec::kLanes;
      const Vec nothing(-__builtin_inff());
      const Mask counts = lanes_from(first_lane + row, i * Vec::kLanes);
      (row < num_rows ? select(counts, Vec::load(cells), nothing) : nothing).store(cells);
    }
  }
};

// Running statistics of 32 queries.
struct PanelStatistics {
  float* reference;  // [32] in units of q k^T
  float* sum;        // [32] of weights
  bool is_new;       // no reference yet
};

// Turns a tile of scores q k^T into weights, stored as 32 rows of a panel. kRounds: the panel holds 16 bits a weight,
// so that the last bits of a weight do not matter; otherwise the weight of the reference itself is exactly 1.
template <class Engine, bool kRounds>
class TileSoftmax {
 public:
  static constexpr uint32_t kWeightRows = 4;
  static constexpr uint32_t kPortions = kBlock / kWeightRows;

  explicit TileSoftmax(float scale) : factor_(scale * kLog2E) {}

  void begin(float* tile, TileBounds bounds, PanelStatistics* statistics, typename Engine::Operand* panel,
             int64_t step) {
    tile_ = tile;
    bounds_ = bounds;
    statistics_ = statistics;
    panel_ = panel + step * kTileCells;
  }

  // Before the weights of a tile: cuts what does not count, and takes the references of new queries.
  void prepare() {
    if (bounds_.cuts()) {
      for (int row = 0; row < kBlock; ++row) bounds_.clear(tile_, row);
    }
    for (int i = 0; i < kVecsPerRow; ++i) sum_[i] = Vec(0.0f);
    if (!statistics_->is_new) return;
    statistics_->is_new = false;
    for (int i = 0; i < kVecsPerRow; ++i) {
      maximum(i).store(statistics_->reference + i * Vec::kLanes);
      Vec(0.0f).store(statistics_->sum + i * Vec::kLanes);
    }
  }

  // After the weights of a tile: some are too great for their references.
  bool exceeds() const {
    uint32_t exceeding = 0;
    for (int i = 0; i < kVecsPerRow; ++i) exceeding |= (Vec(kMostTileSum) < sum_[i]).to_bits();
    return exceeding != 0;
  }
  // Calls scale(i, factor) for each vector of lanes with the factor by which earlier sums shrink. The weights of the
  // tile must be made again.
  template <class Scale>
  void raise_references(Scale&& scale) {
    for (int i = 0; i < kVecsPerRow; ++i) {
      const Vec old = reference(i);
      const Vec raised = select(Vec(kMostTileSum) < sum_[i], maximum(i), old);
      const Vec shrink = exp2((old - raised) * Vec(factor_));
      raised.store(statistics_->reference + i * Vec::kLanes);
      (Vec::load(statistics_->sum + i * Vec::kLanes) * shrink).store(statistics_->sum + i * Vec::kLanes);
      scale(i, shrink);
      sum_[i] = Vec(0.0f);
    }
  }

  // One of kPortions, in ascending order. It must be inlined into the loop of a product: a call between its steps, or
  // any branch that is hard to foresee, keeps the matrix unit and the vector units from overlapping.
  __attribute__((always_inline)) void add_weights(uint32_t portion) {
    const uint32_t first = portion * kWeightRows;
    constexpr int kTogether = Vec::kLanes == 16 ? 2 : 1;  // vectors of a row
    constexpr int kWeights = static_cast<int>(kWeightRows) * kTogether;
    const float* tile = tile_ + first * kScoreStride;
    const float* references = statistics_->reference;
    typename Engine::Operand* panel = panel_;
    const Vec factor(factor_);
    for (int i = 0; i < kVecsPerRow; i += kTogether) {
      Vec weights[kWeights], shift[kTogether], sum[kTogether];
#pragma GCC unroll 2
      for (int j = 0; j < kTogether; ++j) {
        shift[j] = Vec::load(references + (i + j) * Vec::kLanes);
        if (kRounds) shift[j] = shift[j] * Vec(-factor_);
        sum[j] = sum_[i + j];
      }
#pragma GCC unroll 8
      for (int n = 0; n < kWeights; ++n) {
        const float* cells = tile + n / kTogether * kScoreStride + (i + n % kTogether) * Vec::kLanes;
        const Vec score = Vec::load(cells);
        weights[n] = kRounds ? fma(score, factor, shift[n % kTogether]) : (score - shift[n % kTogether]) * factor;
      }
      exp2<kRounds>(weights);
#pragma GCC unroll 4
      for (int n = 0; n < kWeights; n += 2 * kTogether) {
#pragma GCC unroll 2
        for (int j = 0; j < kTogether; ++j) {
          const Vec even = weights[n + j], odd = weights[n + kTogether + j];
          sum[j] += even + odd;
          Engine::store_pair(even, odd, panel, first + n / kTogether, (i + j) * Vec::kLanes);
        }
      }
#pragma GCC unroll 2
      for (int j = 0; j < kTogether; ++j) sum_[i + j] = sum[j];
    }
  }

  // After the last portion. A tile is summed from zero before it joins the running sum: a long sum would not feel
  // single small weights.
  void join() {
    for (int i = 0; i < kVecsPerRow; ++i) {
      float* sum = statistics_->sum + i * Vec::kLanes;
      (Vec::load(sum) + sum_[i]).store(sum);
    }
  }

 private:
  Vec reference(int i) const { return Vec::load(statistics_->reference + i * Vec::kLanes); }
  // Of the tile, kept inside [-kFarthest, kFarthest] so that no difference of references is NaN.
  Vec maximum(int i) const {
    const float* cells = tile_ + i * Vec::kLanes;
    Vec even(-kFarthest), odd(-kFarthest);
#pragma GCC unroll 16
    for (int row = 0; row < kBlock; row += 2) {
      even = max(Vec::load(cells + row * kScoreStride), even);
      odd = max(Vec::load(cells + (row + 1) * kScoreStride), odd);
    }
    return min(Vec(kFarthest), max(even, odd));
  }

  float factor_;
  float* tile_ = nullptr;
  TileBounds bounds_ = {};
  PanelStatistics* statistics_ = nullptr;
  typename Engine::Operand* panel_ = nullptr;
  Vec sum_[kVecsPerRow];
};

}  // namespace tokcore::cpu::TOKCORE_ISA
