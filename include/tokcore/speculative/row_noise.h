// The noise of a block of a row's tokens on the CPU, as far as it is needed to tell which of them may win.
#pragma once

#include <cmath>

#include "tokcore/cpu/philox.h"
#include "tokcore/cpu/vec.h"
#include "tokcore/speculative/draft_samples.h"
#include "tokcore/speculative/noise.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr int64_t kRowBlock = 512;  // a multiple of 32 and of Vec::kLanes

class RowNoise {
 public:
  // Of the tokens from `first` on, which is even.
  void make(int64_t seed, speculative::Stream stream, int64_t position, int64_t first) {
    const uint64_t low = static_cast<uint64_t>(stream) << 32 | static_cast<uint64_t>(first >> 1);
    for (int64_t pair = 0; pair < kRowBlock / 2; pair += Words::kLanes) {
      Words word0, word2;
      philox_words_0_2(static_cast<uint64_t>(seed), low + static_cast<uint64_t>(pair), static_cast<uint64_t>(position),
                       &word0, &word2);
      uint64_t even[Words::kLanes], odd[Words::kLanes];
      word0.store(even);
      word2.store(odd);
      for (int lane = 0; lane < Words::kLanes; ++lane) {
        least_[2 * (pair + lane)] = to_bound(even[lane]);
        least_[2 * (pair + lane) + 1] = to_bound(odd[lane]);
      }
    }
  }

  // Calls offer(i) for those of `count` tokens that may reach `best`; weights(i) are a vector of theirs. As
  // -log2(1 - x) >= x log2(e) bounds the score from above, nearly all tokens are out without a logarithm.
  template <class Weights, class Offer>
  void offer_block(int64_t count, const speculative::NoisyTokens& best, Weights&& weights, Offer&& offer) const {
    Vec bar = bar_of(best.least());
    for (int64_t i = 0; i < count; i += Vec::kLanes) {
      uint32_t left = not_less(weights(i), Vec::load(least_ + i) * bar).to_bits();
      for (; left != 0; left &= left - 1) {
        offer(i + __builtin_ctz(left));
        bar = bar_of(best.least());
      }
    }
  }

 private:
  // Not above the number whose upper 32 bits these are.
  static float to_bound(uint64_t word) {
    return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(word) >> 1)) * 0x1.fffffp-32f;
  }
  // What a weight must reach, times a token's number: 2^(best + log2(log2 e)), with room for rounding.
  static Vec bar_of(double best) {
    return Vec(best == -INFINITY ? 0.0f : 0.999f * std::exp2(static_cast<float>(best) + 0.52876f));
  }

  alignas(64) float least_[kRowBlock];  // of each token's number
};

}  // namespace tokcore::cpu::TOKCORE_ISA
