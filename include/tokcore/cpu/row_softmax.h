// The online softmax with logits of a row side by side in memory (online_softmax.h has a row in each lane), and what
// several parts of a row's softmax give together. The same bounds on the maximum hold.
#pragma once

#include "tokcore/cpu/online_softmax.h"

namespace tokcore::cpu::TOKCORE_ISA {

#if defined(__AVX512F__)
inline float sum_of_lanes(Vec a) { return _mm512_reduce_add_ps(a.v); }  // in the order below
inline float greatest_lane(Vec a) { return _mm512_reduce_max_ps(a.v); }
#else
inline float sum_of_lanes(Vec a) {
  float lanes[Vec::kLanes];
  a.store(lanes);
  for (int width = Vec::kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}
inline float greatest_lane(Vec a) {
  float lanes[Vec::kLanes];
  a.store(lanes);
  float greatest = lanes[0];
  for (int i = 1; i < Vec::kLanes; ++i) greatest = lanes[i] > greatest ? lanes[i] : greatest;
  return greatest;
}
#endif
inline float exp_of(float x) {
  float lanes[Vec::kLanes];
  exp(Vec(x)).store(lanes);
  return lanes[0];
}

struct RowSoftmax {
  float maximum = -kFarthest;
  float sum = 0.0f;

  // Turns logits[count], a multiple of 16, into exp(logit - maximum) and adds them up; the maximum first moves to cover
  // them. Returns by what earlier results shrink.
  float take(float* logits, int64_t count) {
    Vec greatest(-kFarthest);
    for (int64_t i = 0; i < count; i += Vec::kLanes) greatest = max(Vec::load(logits + i), greatest);
    const float raised = raise_maximum(greatest_lane(greatest));
    const Vec shift(maximum);
    Vec total(0.0f);
    for (int64_t i = 0; i < count; i += Vec::kLanes) {
      const Vec weight = exp(Vec::load(logits + i) - shift);
      weight.store(logits + i);
      total += weight;
    }
    sum = sum * raised + sum_of_lanes(total);
    return raised;
  }

  // Returns exp(old maximum - new maximum).
  float raise_maximum(float other) {
    const float limited = other < kFarthest ? other : kFarthest;
    if (!(limited > maximum)) return 1.0f;
    const float shrink = exp_of(maximum - limited);
    maximum = limited;
    return shrink;
  }

  // Adds what another part gave; outputs [count] are weighted sums of either part.
  void merge(const RowSoftmax& other, const float* other_output, int64_t count, float* output) {
    const float mine = raise_maximum(other.maximum);
    const float theirs = exp_of(other.maximum - maximum);
    sum = sum * mine + other.sum * theirs;
    const Vec keep(mine), add(theirs);
    for (int64_t i = 0; i < count; i += Vec::kLanes) {
      fma(Vec::load(other_output + i), add, Vec::load(output + i) * keep).store(output + i);
    }
  }
};

}  // namespace tokcore::cpu::TOKCORE_ISA
