// The online softmax that every family shares: running maximum m, sum s = sum exp(z - m) and, for the entropy,
// q = sum exp(z - m) (z - m), one lane per row of the softmax.
//
// The maximum is kept inside [-kFarthest, kFarthest], so that no difference of maxima is NaN: a row of -inf ends with s
// = 0, a row with +inf with s = inf, and a NaN stays in s.
#pragma once

#include "tokcore/cpu/math.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr float kFarthest = 1.7e38f;

struct SoftmaxState {
  Vec maximum = Vec(-kFarthest);
  Vec sum = Vec(0.0f);
  Vec weighted = Vec(0.0f);

  // Moves the state to a maximum that also covers `other`.
  void raise_maximum(Vec other) {
    const Vec raised = min(Vec(kFarthest), max(other, maximum));
    const Vec change = maximum - raised;
    const Vec scale = exp(change);
    weighted = scale * fma(sum, change, weighted);
    sum = sum * scale;
    maximum = raised;
  }
  void add(Vec z) { sum += exp(z - maximum); }
  void add_with_entropy(Vec z) {
    const Vec distance = z - maximum;
    const Vec weight = exp(distance);
    sum += weight;
    // exp is 0 long before -200; the bound keeps 0 * inf away.
    weighted = fma(weight, max(Vec(-200.0f), distance), weighted);
  }
  void merge(SoftmaxState other) {
    raise_maximum(other.maximum);
    other.raise_maximum(maximum);
    sum += other.sum;
    weighted += other.weighted;
  }
};

}  // namespace tokcore::cpu::TOKCORE_ISA
