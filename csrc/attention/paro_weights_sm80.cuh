// The weights of PARO attention: what becomes of a warp's rows of scores, which lie in a strip fragment.
//
// A score s counts by f s powers of two, f being of its query and of its tile of keys. Sums in int32 lie kIntegerOrigin
// above their bits (tokcore/cuda/mma_sm80.cuh).
#pragma once

#include "tokcore/cuda/mma_sm80.cuh"
#include "tokcore/cuda/online_softmax.cuh"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/cuda/strip_fragment.cuh"

namespace tokcore::attention {

// Below every score, and with every factor from 0 to 1 below or at every product.
inline constexpr float kNoScore = -1e38f;

// Rows of weights relative to a reference c in powers of two: their sum, and NaN where a scale or a score is NaN.
template <class Scores>
struct WeightRows {
  static constexpr int kSlots = Scores::kSlots;
  float base[kSlots];       // f of a query, without that of the keys
  float reference[kSlots];  // the greatest c so far
  float sum[kSlots];        // of weights relative to it; of this lane until finish()

  TOKCORE_DEVICE void clear() {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      reference[slot] = -cuda::kFarthest;
      sum[slot] = 0.0f;
    }
  }
  // f of a tile. Beyond 1 scores would be powers of 2 from one another.
  TOKCORE_DEVICE float factor(int slot, float key_scale) const {
    const float product = base[slot] * key_scale;
    return product > 1.0f ? 1.0f : product;  // a NaN stays
  }
  // The greatest score of every row, times f.
  static TOKCORE_DEVICE void take_tops(Scores& scores, const float (&f)[kSlots], float (&tops)[kSlots]) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) tops[slot] = kNoScore;
    scores.for_each([&](float& score, int slot, int, int) { tops[slot] = fmaxf(tops[slot], score); });
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const float top = cuda::quad_max(tops[slot]) * f[slot];
      tops[slot] = fminf(fmaxf(top, -cuda::kFarthest), cuda::kFarthest);
    }
  }
  // Moves references up to those of a tile; calls shrink(slot, factor) for what was summed before.
  template <class Shrink>
  TOKCORE_DEVICE void raise(const float (&tile)[kSlots], Shrink&& shrink) {
    bool rises = false;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) rises = rises || tile[slot] > reference[slot];
    if (!__any_sync(cuda::kAllLanes, rises)) return;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const float raised = fmaxf(reference[slot], tile[slot]);
      const float change = cuda::exp2_approx(reference[slot] - raised);
      reference[slot] = raised;
      sum[slot] *= change;
      shrink(slot, change);
    }
  }
  // What the sums of weighted values are multiplied by; 0 for a row that saw nothing.
  TOKCORE_DEVICE float norm(int slot) const {
    if (sum[slot] == 0.0f) return 0.0f;
    const float infinity = __uint_as_float(0x7f800000u);
    return sum[slot] < infinity ? 1.0f / sum[slot] : __uint_as_float(0x7fffffffu);
  }
  // Natural logarithm of the sum of exponentials.
  TOKCORE_DEVICE float log_sum_exp(int slot) const {
    if (sum[slot] == 0.0f) return -__uint_as_float(0x7f800000u);
    const double power = static_cast<double>(reference[slot]) + log2(static_cast<double>(sum[slot]));
    return static_cast<float>(cuda::kLn2 * power);
  }
};

// Sets the scores past the last key, of which there are `num_keys`, to `value`.
template <class Scores>
TOKCORE_DEVICE void cut_keys(Scores& scores, int num_keys, float value, int lane) {
  scores.for_each([&](float& score, int, int group, int odd) {
    if (Scores::column_of(group, odd, lane) >= num_keys) score = value;
  });
}

// Weights as floats, which the product takes in bfloat16, relative to the greatest score so far.
template <class Scores, bool kIntegers>
struct FloatWeights {
  static constexpr int kSlots = Scores::kSlots;
  WeightRows<Scores> rows;

  TOKCORE_DEVICE void clear() { rows.clear(); }
  TOKCORE_DEVICE static int key_of(int column) { return column; }

  template <class Shrink>
  TOKCORE_DEVICE void add(Scores& scores, float key_scale, int num_keys, int lane, Shrink&& shrink) {
    float f[kSlots], tops[kSlots];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) f[slot] = kIntegers ? rows.factor(slot, key_scale) : rows.base[slot];
    if constexpr (kIntegers) scores.for_each([](float& score, int, int, int) { score -= cuda::kIntegerOrigin; });
    if (num_keys < Scores::kColumns) cut_keys(scores, num_keys, kNoScore, lane);
    rows.take_tops(scores, f, tops);
    rows.raise(tops, shrink);
    scores.for_each([&](float& score, int slot, int, int) {
      score = cuda::exp2_approx(fmaf(score, f[slot], -rows.reference[slot]));
    });
    if (num_keys < Scores::kColumns) cut_keys(scores, num_keys, 0.0f, lane);
    float added[kSlots] = {};
    scores.for_each([&](float& score, int slot, int, int) { added[slot] += score; });
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) rows.sum[slot] += added[slot];
  }
  TOKCORE_DEVICE void finish() {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) rows.sum[slot] = cuda::quad_sum(rows.sum[slot]);
  }
};

// Weights in 8 bits, p = round(2^(f s - c)) with c such that the greatest of a tile is 255: every tile of 64 keys uses
// all bits. Sums and products of a tile are exact integers and join those of other tiles by the power `grow`.
//
// c is moved up by 2^-21 of itself, more than the roundings on the way to a power can be: no weight goes beyond 255.
template <class Scores, bool kIntegers>
struct ByteWeights {
  static constexpr int kSlots = Scores::kSlots, kStrips = Scores::kStrips;
  static constexpr int kSteps = Scores::kColumns / 32;  // of the product
  static constexpr float kLog2Of255 = 7.99435344f;
  WeightRows<Scores> rows;
  float poison[kSlots];                 // 0, or NaN where a scale or a score is NaN
  float grow[kSlots];                   // what the products of this tile count by
  uint32_t packed[kStrips][kSteps][4];  // operand A of mma.sync

  TOKCORE_DEVICE void clear() {
    rows.clear();
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) poison[slot] = 0.0f;
  }

  // Which key of a tile its row of shared memory holds: a lane then has the scores of the four neighbours that it has
  // as bytes of operand A. Of 16 rows the first half holds the even pairs of keys, the second half the odd ones.
  static TOKCORE_DEVICE int key_of(int row) {
    return (row & ~15) | (row >> 1 & 3) << 2 | (row >> 3 & 1) << 1 | (row & 1);
  }

  template <class Shrink>
  TOKCORE_DEVICE void add(Scores& scores, float key_scale, int num_keys, int lane, Shrink&& shrink) {
    float f[kSlots], c[kSlots];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      f[slot] = kIntegers ? rows.factor(slot, key_scale) : rows.base[slot];
      poison[slot] = fmaf(f[slot], 0.0f, poison[slot]);
    }
    if constexpr (kIntegers) scores.for_each([](float& score, int, int, int) { score -= cuda::kIntegerOrigin; });
    if (num_keys < Scores::kColumns) cut(scores, num_keys, kNoScore, lane);
    if constexpr (!kIntegers) {
      scores.for_each([&](float& score, int slot, int, int) { poison[slot] = fmaf(score, 0.0f, poison[slot]); });
    }
    rows.take_tops(scores, f, c);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) c[slot] = fmaf(fabsf(c[slot]), 0x1p-21f, c[slot]) - kLog2Of255;
    rows.raise(c, shrink);
    scores.for_each([&](float& score, int slot, int, int) {
      score = cuda::exp2_approx(fmaf(score, f[slot], -c[slot])) + cuda::kIntegerOrigin;
    });
    if (num_keys < Scores::kColumns) cut(scores, num_keys, cuda::kIntegerOrigin, lane);
    pack(scores);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      unsigned count = 0;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          count = __dp4a(packed[slot / 2][step][slot % 2 + 2 * half], 0x01010101u, count);
        }
      }
      grow[slot] = cuda::exp2_approx(c[slot] - rows.reference[slot]);
      rows.sum[slot] = fmaf(static_cast<float>(count), grow[slot], rows.sum[slot]);
    }
  }
  TOKCORE_DEVICE void finish() {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      rows.sum[slot] = cuda::quad_sum(rows.sum[slot]) + cuda::quad_sum(poison[slot]);
    }
  }

 private:
  static TOKCORE_DEVICE void cut(Scores& scores, int num_keys, float value, int lane) {
    scores.for_each([&](float& score, int, int group, int odd) {
      if (key_of(Scores::column_of(group, odd, lane)) >= num_keys) score = value;
    });
  }
  // The low bytes of four scores each: of a row those of two neighbouring groups.
  TOKCORE_DEVICE void pack(Scores& scores) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // of operand A: rows i % 2, halves of the step i / 2
          const int group = step * 4 + i / 2 * 2;
          const auto word = [&](int g, int odd) { return __float_as_uint(scores.values[strip][g][i % 2 * 2 + odd]); };
          const uint32_t low = __byte_perm(word(group, 0), word(group, 1), 0x0040);
          const uint32_t high = __byte_perm(word(group + 1, 0), word(group + 1, 1), 0x0040);
          packed[strip][step][i] = __byte_perm(low, high, 0x5410);
        }
      }
    }
  }
};

}  // namespace tokcore::attention
