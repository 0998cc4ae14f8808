// Weights 2^y of a span of tiles of 64 keys by 32 queries, relative to the greatest score so far, as the panel of a
// product on bf16 (or fp32) operands. The counterpart of ByteSoftmax.
#pragma once

#include "tokcore/attention/byte_softmax.h"

namespace tokcore::cpu::TOKCORE_ISA {

template <class Engine>
class FloatSoftmax {
 public:
  using Weight = typename Engine::Operand;
  static constexpr int64_t kWeightsPerTile = kTileKeys * kBlock;
  static constexpr float kUnits = 1.0f;
  static constexpr float kTop = 1.0f;

  explicit FloatSoftmax(Arena& arena) : scores_(arena.take<float>(kSpanTiles * kTileKeys * kBlock)) {}

  template <class Scores>
  static void take_base(const float*, int64_t, const float*, float*) {}
  template <class Scores>
  static void raise_base(const float*, int64_t, const float*, float*) {}
  bool exceeds() const { return false; }

  void begin_span() {
    for (Vec& greatest : greatest_) greatest = Vec(-kFarthest);
  }

  template <class Scores>
  void add_scores(const float* scores, int64_t num_rows, const float* factor, SpanState&, int i) {
    float* to = scores_ + i * kTileKeys * kBlock;
    for (int row = 0; row < kTileKeys; ++row) {
      if (row >= num_rows) {
        for (int c = 0; c < kBlock; ++c) to[row * kBlock + c] = -__builtin_inff();
        continue;
      }
      for (int c = 0; c < kBlock; ++c)
        to[row * kBlock + c] = (scores[row * kScoreStride + c] - Scores::kBias) * factor[c];
      for (int v = 0; v < kVecsPerRow; ++v) {
        greatest_[v] = max(Vec::load(to + row * kBlock + v * Vec::kLanes), greatest_[v]);
      }
    }
  }

  void end_scores(SpanState& state) {
    for (int v = 0; v < kVecsPerRow; ++v) {
      const int c = v * Vec::kLanes;
      const Vec found = min(Vec(kFarthest), greatest_[v]);
      const Vec old = state.is_new ? found : Vec::load(state.reference + c);
      const Vec raised = max(found, old);
      raised.store(state.reference + c);
      exp2(old - raised).store(state.shrink + c);
      Vec(1.0f).store(state.grow + c);
      reference_[v] = raised;
      sum_[v] = Vec(0.0f);
    }
  }

  void make_weights(int i, Weight* panel) {
    const float* from = scores_ + i * kTileKeys * kBlock;
    for (int row = 0; row < kTileKeys; row += 2) {
      Weight* tile = panel + row / kBlock * kTileCells;
      for (int v = 0; v < kVecsPerRow; ++v) {
        Vec pair[2];
        for (int j = 0; j < 2; ++j) {
          pair[j] = Vec::load(from + (row + j) * kBlock + v * Vec::kLanes) - reference_[v];
        }
        exp2<sizeof(Weight) == 2>(pair);
        sum_[v] += pair[0] + pair[1];
        Engine::store_pair(pair[0], pair[1], tile, row % kBlock, v * Vec::kLanes);
      }
    }
  }

  void end_span(SpanState& state) {
    for (int v = 0; v < kVecsPerRow; ++v) {
      float* sum = state.sum + v * Vec::kLanes;
      const Vec before = state.is_new ? Vec(0.0f) : Vec::load(sum) * Vec::load(state.shrink + v * Vec::kLanes);
      (before + sum_[v]).store(sum);
    }
    state.is_new = false;
  }

 private:
  float* scores_;  // [kSpanTiles][64][32]
  Vec greatest_[kVecsPerRow], reference_[kVecsPerRow], sum_[kVecsPerRow];
};

}  // namespace tokcore::cpu::TOKCORE_ISA
