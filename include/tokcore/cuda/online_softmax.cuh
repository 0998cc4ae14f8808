// The online softmax that every family shares: of the numbers z seen so far a maximum m, s = sum 2^(z L - R(m)) and,
// for the entropy, q = sum 2^(z L - R(m)) (z L - R(m)), with L = log2(e) in fp32 and R(m) = m L rounded to fp32. So
// each term is one multiply-add and one instruction for the power. What rounding has put into R(m) is the same for all
// terms and is taken out of the logarithm in the end; the error of L only counts by how far z lies below m.
//
// m is kept inside [-kFarthest, kFarthest], so that no difference of maxima is NaN: a row of -inf ends with s = 0, a
// row with +inf with s = inf, and a NaN stays in s.
#pragma once

#include "tokcore/cuda/math.cuh"

namespace tokcore::cuda {

inline constexpr float kFarthest = 1.6e38f;

struct SoftmaxState {
  float maximum = -kFarthest;
  float sum = 0.0f;
  float weighted = 0.0f;

  // R(m).
  static TOKCORE_DEVICE float reference(float maximum) { return maximum * kLog2E; }
  static TOKCORE_DEVICE float bounded(float maximum) { return fminf(fmaxf(maximum, -kFarthest), kFarthest); }

  // Moves the state to a maximum that also covers `other`, which is bounded.
  TOKCORE_DEVICE void raise_maximum(float other) {
    const float raised = fmaxf(other, maximum);
    const float change = reference(maximum) - reference(raised);
    const float scale = exp2_approx(change);
    weighted = scale * fmaf(sum, change, weighted);
    sum *= scale;
    maximum = raised;
  }
  TOKCORE_DEVICE void merge(SoftmaxState other) {
    raise_maximum(other.maximum);
    other.raise_maximum(maximum);
    sum += other.sum;
    weighted += other.weighted;
  }

  // Natural logarithm of sum e^z, and the entropy in nats.
  TOKCORE_DEVICE float log_sum_exp() const {
    const double m = static_cast<double>(maximum);
    const double rounded_away = m * static_cast<double>(kLog2E) - static_cast<double>(reference(maximum));
    return static_cast<float>(m + kLn2 * (log2(static_cast<double>(sum)) - rounded_away));
  }
  TOKCORE_DEVICE float entropy() const {
    const double mean = static_cast<double>(weighted) / static_cast<double>(sum);
    return static_cast<float>(kLn2 * (log2(static_cast<double>(sum)) - mean));
  }
};

}  // namespace tokcore::cuda
