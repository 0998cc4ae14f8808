// The online softmax of a warp's rows of scores, which lie in a strip fragment.
#pragma once

#include "attention/attention_scale.cuh"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/cuda/strip_fragment.cuh"

namespace tokcore::attention {

// Sets to -inf what lies past the last key or, with `causal`, after the query.
template <class Scores>
TOKCORE_DEVICE void cut_scores(Scores& scores, int first_key, int end_key, bool causal, int first_seen_end, int lane) {
  scores.for_each([&](float& score, int slot, int group, int odd) {
    const int key = first_key + Scores::column_of(group, odd, lane);
    const bool is_seen = key < end_key && (!causal || key < first_seen_end + Scores::row_of(slot, lane));
    score = is_seen ? score : -__uint_as_float(0x7f800000u);
  });
}

// kExact: the weight at the maximum is exactly 1, at the price of an instruction more a score. 16-bit weights do not
// show the difference.
template <class Scores, bool kExact>
class RowSoftmax {
 public:
  static constexpr int kSlots = Scores::kSlots;

  TOKCORE_DEVICE explicit RowSoftmax(const ScoreScale& scale) : scale_(scale) { restart(); }

  // Turns scores into weights. Where maxima rise, calls shrink(slot, factor) for what was summed before.
  template <class Shrink>
  TOKCORE_DEVICE void add(Scores& scores, Shrink&& shrink) {
    float raised[kSlots];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) raised[slot] = maximum_[slot];
    scores.for_each([&](float& score, int slot, int, int) { raised[slot] = fmaxf(raised[slot], score); });
    bool rises = false;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      raised[slot] = fminf(cuda::quad_max(raised[slot]), scale_.limit);
      rises = rises || raised[slot] > maximum_[slot];
    }
    if (__any_sync(cuda::kAllLanes, rises)) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const float factor = cuda::exp2_approx((maximum_[slot] - raised[slot]) * scale_.factor);
        maximum_[slot] = raised[slot];
        sum_[slot] *= factor;
        shrink(slot, factor);
      }
    }
    float added[kSlots] = {};
    scores.for_each([&](float& score, int slot, int, int) {
      const float power = kExact ? (score - maximum_[slot]) * scale_.factor
                                 : fmaf(score, scale_.factor, -maximum_[slot] * scale_.factor);
      score = cuda::exp2_approx(power);
      added[slot] += score;
    });
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) sum_[slot] += added[slot];
  }

  // Forgets what was seen.
  TOKCORE_DEVICE void restart() {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      maximum_[slot] = -scale_.limit;
      sum_[slot] = 0.0f;
    }
  }

  // After the last scores: every lane of a quad gets the sum of the row.
  TOKCORE_DEVICE void finish() {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) sum_[slot] = cuda::quad_sum(sum_[slot]);
  }
  TOKCORE_DEVICE float maximum(int slot) const { return maximum_[slot]; }
  TOKCORE_DEVICE float sum(int slot) const { return sum_[slot]; }
  // What the sum of weighted values is multiplied by; 0 for a row that saw nothing.
  TOKCORE_DEVICE float norm(int slot) const { return sum_[slot] == 0.0f ? 0.0f : 1.0f / sum_[slot]; }
  // Natural logarithm of the sum of exponentials. What rounding has put into factor * maximum is the same for all
  // weights of a row and is taken out here.
  TOKCORE_DEVICE float log_sum_exp(int slot) const {
    if (sum_[slot] == 0.0f) return -__uint_as_float(0x7f800000u);
    const double maximum = static_cast<double>(maximum_[slot]), factor = static_cast<double>(scale_.factor);
    const double rounded_away = kExact ? 0.0 : maximum * factor - static_cast<double>(maximum_[slot] * scale_.factor);
    return static_cast<float>(maximum * static_cast<double>(scale_.scale) +
                              cuda::kLn2 * (log2(static_cast<double>(sum_[slot])) - rounded_away));
  }

 private:
  ScoreScale scale_;
  float maximum_[kSlots];
  float sum_[kSlots];  // of this lane until finish()
};

}  // namespace tokcore::attention
