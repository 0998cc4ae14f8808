// Weights of scores as bf16, the first operand of the product with values, and values as the second one.
//
// Of 32 tokens, the pairs that a tile multiplies together are tokens j and j + 16: then a row of weights is made of
// whole vectors of scores, rounded by integer instructions and blended, and no instruction crosses lanes.
#pragma once

#include "tokcore/cpu/transpose.h"
#include "tokcore/kv_cache/decode_fma.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Two vectors as bf16, one in the even and one in the odd words; ties away from zero. The units that convert are the
// ones that exponentials wait for.
inline void store_weight_pair(Vec even, Vec odd, BFloat16* to) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even.v), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd.v), half);
  constexpr __mmask32 kOddWords = 0xaaaaaaaa;
  _mm512_storeu_si512(to, _mm512_mask_mov_epi16(low, kOddWords, high));
}

// The greatest of `count` scores, a multiple of 16, in some lane.
inline Vec greatest_of(const float* scores, int64_t count) {
  Vec even(-kFarthest), odd(-kFarthest);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    even = max(Vec::load(scores + i), even);
    odd = max(Vec::load(scores + i + 16), odd);
  }
  for (; i < count; i += 16) even = max(Vec::load(scores + i), even);
  return max(even, odd);
}

// Weights exp(score * unit - maximum) of a block of one row. The maximum need not cover the scores: weights are
// floating point numbers, so that it only has to keep them from overflowing. It is that of the first kGuessed columns
// that a row sees, and moves to that of a block whose weights add up to kMostSum or more. So the weights of almost all
// blocks are made in one pass, tile by tile. What is hidden between those columns does not count: a node of a tree sees
// its ancestors among other nodes, and its weights are rounded as those of the same token in a text.
struct WeighRow {
  static constexpr int kGuessed = 32;
  static constexpr float kMostSum = 4096.0f;  // of 512 columns

  static bool has_maximum(const RowSoftmax& state) { return state.maximum > -kFarthest; }
  // Returns by what earlier results of the row shrink.
  static float guess(RowSoftmax& state, const float* scores, int64_t columns, float unit) {
    const Vec hidden(-kFarthest);
    Vec greatest = hidden;
    int left = kGuessed;
    for (int64_t i = 0; i < columns && left > 0; i += 16) {
      const Vec found = Vec::load(scores + i);
      uint32_t seen = (hidden < found).to_bits();
      while (__builtin_popcount(seen) > left) seen &= ~(0x80000000u >> __builtin_clz(seen));
      left -= __builtin_popcount(seen);
      greatest = max(select(Mask::from_bits(seen), found, hidden), greatest);
    }
    return state.raise_maximum(greatest_lane(greatest) * unit);
  }

  WeighRow(float unit, float maximum) : factor(unit * kLog2E), shift(-maximum * kLog2E) {}

  WeighRow(Vec factor, Vec shift) : factor(factor), shift(shift) {}

  // 32 columns; returns what their lanes add up to.
  Vec weigh(const float* scores, BFloat16* weights) const {
    Vec weight[2] = {fma(Vec::load(scores), factor, shift), fma(Vec::load(scores + 16), factor, shift)};
    exp2<true>(weight);
    store_weight_pair(weight[0], weight[1], weights);
    return weight[0] + weight[1];
  }
  // The last 16 of an odd number of columns get zeros as partners.
  Vec weigh_last(const float* scores, BFloat16* weights) const {
    Vec weight[1] = {fma(Vec::load(scores), factor, shift)};
    exp2<true>(weight);
    store_weight_pair(weight[0], Vec(0.0f), weights);
    return weight[0];
  }

  float weigh_all(const float* scores, int64_t columns, BFloat16* weights) const {
    Vec sum(0.0f);
    int64_t i = 0;
    for (; i + 64 <= columns; i += 64) {
      Vec weight[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) weight[j] = fma(Vec::load(scores + i + j * 16), factor, shift);
      exp2<true>(weight);
      store_weight_pair(weight[0], weight[1], weights + i);
      store_weight_pair(weight[2], weight[3], weights + i + 32);
      sum = sum + (weight[0] + weight[1]);
      sum = sum + (weight[2] + weight[3]);
    }
    for (; i + 32 <= columns; i += 32) sum = sum + weigh(scores + i, weights + i);
    if (i < columns) sum = sum + weigh_last(scores + i, weights + i);
    return sum_of_lanes(sum);
  }

  // Returns by what earlier results of the row shrink.
  static float take(RowSoftmax& state, const float* scores, int64_t columns, float unit, BFloat16* weights) {
    float shrink = 1.0f;
    if (!has_maximum(state)) shrink = guess(state, scores, columns, unit);
    const float sum = WeighRow(unit, state.maximum).weigh_all(scores, columns, weights);
    if (!(sum < kMostSum)) return shrink * retake(state, scores, columns, unit, weights);
    state.sum = state.sum * shrink + sum;
    return shrink;
  }
  // … after a sum that was too great. (A row without a maximum has no sum yet.)
  static float retake(RowSoftmax& state, const float* scores, int64_t columns, float unit, BFloat16* weights) {
    const float shrink = state.raise_maximum(greatest_lane(greatest_of(scores, columns)) * unit);
    state.sum = state.sum * shrink + WeighRow(unit, state.maximum).weigh_all(scores, columns, weights);
    return shrink;
  }

  Vec factor, shift;
};

// The values of 32 tokens and 32 channels, segment and the next one, as two tiles whose rows are pairs of tokens. Two
// unpack instructions a pair permute the channels: restore_channels() undoes that.
inline void interleave_values(const Block& block, int64_t segment, int64_t channel, int64_t head_dim, char* to) {
  const auto rows = [&](int64_t index) { return reinterpret_cast<const BFloat16*>(block.segments[index].v) + channel; };
  const __m512i zero = _mm512_setzero_si512();
  const bool both = segment + 1 < block.num_segments;
  const int64_t counts[2] = {block.segments[segment].count, both ? block.segments[segment + 1].count : 0};
  const BFloat16* even_rows = rows(segment);
  const BFloat16* odd_rows = both ? rows(segment + 1) : even_rows;
  for (int64_t token = 0; token < kGroupTokens; ++token, to += 64) {
    const __m512i even = token < counts[0] ? _mm512_loadu_si512(even_rows + token * head_dim) : zero;
    const __m512i odd = token < counts[1] ? _mm512_loadu_si512(odd_rows + token * head_dim) : zero;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(even, odd));
    _mm512_storeu_si512(to + 1024, _mm512_unpackhi_epi16(even, odd));
  }
}

// Column j of the first tile of 32 channels is channel 8 (j / 4) + j % 4, of the second four more.
inline void restore_channels(const float* from, int64_t head_dim, float* to) {
  for (int64_t d = 0; d < head_dim; d += 32) {
    for (int64_t j = 0; j < 16; j += 4) {
      __builtin_memcpy(to + d + 2 * j, from + d + j, 16);
      __builtin_memcpy(to + d + 2 * j + 4, from + d + 16 + j, 16);
    }
  }
}

// out [num_rows, head_dim] = out * shrink + sums, num_tiles tiles of 16 channels side by side.
inline void add_tile_sums(const float* sums, int64_t num_tiles, int64_t num_rows, const float* shrink, int64_t head_dim,
                          float* out) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const Vec factor(shrink[row]);
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      float* cells = out + row * head_dim + tile * 16;
      fma(Vec::load(cells), factor, Vec::load(sums + tile * 256 + row * 16)).store(cells);
    }
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
