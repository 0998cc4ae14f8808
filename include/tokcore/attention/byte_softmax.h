// Weights in 8 bits: p = round(255 2^y) of a span of up to kSpanTiles tiles of 64 keys by 32 queries, y relative to the
// span's own maximum of each query, so that every span uses all 8 bits. Scores are first brought to 16 bits, 256 steps
// to a factor of 2, relative to a base of the query; maxima, differences and powers of 2 are then 16-bit integers, 32
// to a vector, and the same at every instruction-set level.
//
// The base is the maximum of what came before. 16 bits reach 127 powers of 2 above it; where a query's scores go beyond
// (or nearly), the span is walked twice, the first time for its maximum alone.
#pragma once

#include "tokcore/attention/tile_softmax.h"
#include "tokcore/cpu/block_product_int8.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/cpu/transpose.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr int kTileKeys = 64;
inline constexpr int kSpanTiles = 4;
inline constexpr float kScoreSteps = 256.0f;     // to a factor of 2
inline constexpr float kScoreBias = kFloatBias;  // of scores that are sums of 8-bit codes: at most 127 * 127 * 256

// 32 queries over all spans.
struct alignas(64) SpanState {
  float reference[kBlock];  // the greatest score so far, in steps
  float sum[kBlock];        // of weights relative to it, times 255
  float poison[kBlock];     // 0, or NaN where a scale or a score is NaN
  float base[kBlock];       // of the scores of the span at work, in steps
  float shrink[kBlock];     // factor of the sums before the span
  float grow[kBlock];       // and of the span's own
  bool is_new;
};

class ByteSoftmax {
 public:
  using Weight = uint8_t;
  static constexpr int64_t kWeightsPerTile = kTileKeys * kBlock;
  static constexpr float kUnits = kScoreSteps;  // of scores and references, to a factor of 2
  static constexpr float kTop = 255.0f;         // the weight of the greatest score

  explicit ByteSoftmax(Arena& arena) : steps_(arena.take<int16_t>(kSpanTiles * kTileKeys * kBlock)) {}

  // The base of a query without any: the maximum of its first tile. factor [32]: steps per score.
  template <class Scores>
  static void take_base(const float* scores, int64_t num_rows, const float* factor, float* base) {
    for (int c = 0; c < kBlock; ++c) base[c] = -kFarthest;
    raise_base<Scores>(scores, num_rows, factor, base);
  }
  template <class Scores>
  static void raise_base(const float* scores, int64_t num_rows, const float* factor, float* base) {
    float greatest[kBlock];
    for (int c = 0; c < kBlock; ++c) greatest[c] = scores[c];
    for (int64_t row = 1; row < num_rows; ++row) {
      for (int c = 0; c < kBlock; ++c) {
        const float cell = scores[row * kScoreStride + c];
        greatest[c] = cell > greatest[c] ? cell : greatest[c];
      }
    }
    for (int c = 0; c < kBlock; ++c) {
      const float candidate = (greatest[c] - Scores::kBias) * factor[c];
      const float kept = candidate > base[c] ? candidate : base[c];  // a NaN leaves the base as it is
      base[c] = kept < kFarthest ? kept : kFarthest;
    }
  }

  void begin_span() {
    for (int16_t& step : greatest_) step = INT16_MIN;
  }

  // Tile i of the span: scores [64][kScoreStride] with 32 of interest, num_rows of which count.
  template <class Scores>
  void add_scores(const float* scores, int64_t num_rows, const float* factor, SpanState& state, int i) {
    int16_t* steps = steps_ + i * kTileKeys * kBlock;
    add_poison<Scores>(scores, num_rows, factor, state.poison);
#if defined(__AVX512BW__)
    Scores::kBias != 0.0f && are_small(factor) ? make_steps<Scores, true>(scores, factor, state.base, steps)
                                               : make_steps<Scores, false>(scores, factor, state.base, steps);
#else
    for (int row = 0; row < kTileKeys; ++row) {
      for (int c = 0; c < kBlock; ++c) {
        float step = (scores[row * kScoreStride + c] - Scores::kBias) * factor[c] - state.base[c];
        step = step < 32767.0f ? step : 32767.0f;
        step = step > -32768.0f ? step : -32768.0f;
        const float rounded = step + 12582912.0f;
        int32_t bits;
        __builtin_memcpy(&bits, &rounded, 4);
        const auto whole = static_cast<int16_t>(bits - 0x4b400000);
        steps[row * kBlock + c] = whole;
        greatest_[c] = whole > greatest_[c] ? whole : greatest_[c];
      }
    }
#endif
    if (num_rows < kTileKeys) cut(steps, num_rows);
  }

  // Whether the base must be raised and the span's scores added once more.
  bool exceeds() const {
    int16_t most = INT16_MIN;
    for (int16_t step : greatest_) most = step > most ? step : most;
    return most > INT16_MAX - kShift;
  }

  // After the last tile: the span's maximum joins the reference.
  void end_scores(SpanState& state) {
    alignas(64) float greatest[kBlock];
    take_tops(greatest);
    for (int c = 0; c < kBlock; c += Vec::kLanes) {
      const Vec found = Vec::load(state.base + c) + Vec::load(greatest + c);
      const Vec old = state.is_new ? found : Vec::load(state.reference + c);
      const Vec raised = max(found, old);
      const Vec step(1.0f / kScoreSteps);
      exp2((old - raised) * step).store(state.shrink + c);
      exp2((found - raised) * step).store(state.grow + c);
      raised.store(state.reference + c);
    }
    for (int32_t& sum : sums_) sum = 0;
  }

  // The weights of tile i: a step of a panel of bytes.
  void make_weights(int i, uint8_t* panel) {
    const int16_t* steps = steps_ + i * kTileKeys * kBlock;
#if defined(__AVX512BW__)
    alignas(16) static constexpr uint8_t kTransposed[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const __m512i quads = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kTransposed)));
    for (int half = 0; half < 2; ++half) {
      const __m512i top = _mm512_load_si512(tops_ + half * 32);
      __m512i sum = _mm512_load_si512(sums_ + half * 16);
      for (int quad = 0; quad < kTileKeys / 4; quad += kQuads) {
        __m512i weights[2 * kQuads];
#pragma GCC unroll 4
        for (int n = 0; n < 2 * kQuads; ++n) {
          weights[n] = _mm512_load_si512(steps + (quad + n / 2) * 128 + half * 64 + n % 2 * 32);
        }
        powers(weights, top);
#pragma GCC unroll 2
        for (int n = 0; n < kQuads; ++n) {
          const __m512i packed = _mm512_shuffle_epi8(_mm512_packus_epi16(weights[2 * n], weights[2 * n + 1]), quads);
          _mm512_store_si512(panel + half * kInt8TileBytes + (quad + n) * 64, packed);
#if defined(__AVX512VNNI__)
          sum = _mm512_dpbusd_epi32(sum, packed, _mm512_set1_epi8(1));
#else
          const __m512i pairs = _mm512_maddubs_epi16(packed, _mm512_set1_epi8(1));
          sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
        }
      }
      _mm512_store_si512(sums_ + half * 16, sum);
    }
#else
    for (int row = 0; row < kTileKeys; ++row) {
      uint8_t* to = panel + row / 4 * 64 + row % 4;
      for (int c = 0; c < kBlock; ++c) {
        int32_t below = tops_[c] - steps[row * kBlock + c];
        below = below < 32767 ? below : 32767;
        const int32_t fraction = below << 8 & 0xff00, whole = below >> 8;
        const int32_t rest = kOne - (fraction * (kLinear - (fraction * kSquare >> 16)) >> 16);
        const int32_t weight = ((rest >> (whole < 16 ? whole : 16)) + 1) >> 1;
        to[c / 16 * kInt8TileBytes + c % 16 * 4] = static_cast<uint8_t>(weight);
        sums_[c] += weight;
      }
    }
#endif
  }

  // After the last weights.
  void end_span(SpanState& state) {
    for (int c = 0; c < kBlock; ++c) {
      state.sum[c] =
          (state.is_new ? 0.0f : state.sum[c] * state.shrink[c]) + static_cast<float>(sums_[c]) * state.grow[c];
    }
    state.is_new = false;
  }

 private:
  // A weight is (65280 2^-fraction) >> whole >> 8, rounded at the last bit: the shift by 7 of the first 8 is added to
  // the distance from the maximum. 2^-x = 1 - x (a - b x) on [0, 1), relative error below 0.23 %, exact at 0.
  static constexpr int32_t kShift = 7 * 256;
  static constexpr int kQuads = 2;  // of keys whose weights are made together
  static constexpr int32_t kOne = 65280, kLinear = 43903, kSquare = 11338;

  // A NaN among the scores (of floats) or in the factors.
  template <class Scores>
  static void add_poison(const float* scores, int64_t num_rows, const float* factor, float* poison) {
    for (int c = 0; c < kBlock; ++c) poison[c] += factor[c] * 0.0f;
    if constexpr (Scores::kBias == 0.0f) {
      for (int64_t row = 0; row < num_rows; ++row) {
        for (int c = 0; c < kBlock; ++c) poison[c] += scores[row * kScoreStride + c] * 0.0f;
      }
    }
  }

#if defined(__AVX512BW__)
  // Where a score counts little, its bias may be part of the base: that rounds the base by up to a whole score.
  static bool are_small(const float* factor) {
    const __m512 most = _mm512_set1_ps(0.125f);
    return (_mm512_cmp_ps_mask(_mm512_load_ps(factor), most, _CMP_LT_OQ) &
            _mm512_cmp_ps_mask(_mm512_load_ps(factor + 16), most, _CMP_LT_OQ)) == 0xffff;
  }
  template <class Scores, bool kFolds>
  void make_steps(const float* scores, const float* factor, const float* bases, int16_t* steps) {
    for (int half = 0; half < 2; ++half) {
      const __m512 scale = _mm512_load_ps(factor + half * 16), bias = _mm512_set1_ps(Scores::kBias);
      __m512 base = _mm512_load_ps(bases + half * 16);
      if (kFolds) base = _mm512_fmadd_ps(scale, bias, base);
      __m512i greatest = _mm512_load_si512(greatest_ + half * 32);
#pragma GCC unroll 2
      for (int row = 0; row < kTileKeys; row += 4) {
        __m512i whole[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          __m512 score = _mm512_loadu_ps(scores + (row + j) * kScoreStride + half * 16);
          if (!kFolds && Scores::kBias != 0.0f) score = _mm512_sub_ps(score, bias);
          __m512 step = _mm512_fmsub_ps(score, scale, base);
          if (Scores::kBias == 0.0f) step = _mm512_min_ps(step, _mm512_set1_ps(0x1p30f));
          whole[j] = _mm512_cvtps_epi32(step);
        }
        const __m512i upper = _mm512_packs_epi32(whole[0], whole[1]);
        const __m512i lower = _mm512_packs_epi32(whole[2], whole[3]);
        greatest = _mm512_max_epi16(greatest, _mm512_max_epi16(upper, lower));
        _mm512_store_si512(steps + (row * 2 + half * 4) * 16, upper);
        _mm512_store_si512(steps + (row * 2 + half * 4) * 16 + 32, lower);
      }
      _mm512_store_si512(greatest_ + half * 32, greatest);
    }
  }
  // Several vectors at a time, step by step (see exp2 in cpu/math.h). The byte shuffles are shifts by 8 on the port
  // that multiplications and shifts leave free.
  template <int kCount>
  static __attribute__((always_inline)) void powers(__m512i (&steps)[kCount], __m512i top) {
    const __m512i raised = _mm512_set4_epi32(0x0e800c80, 0x0a800880, 0x06800480, 0x02800080);
    const __m512i lowered = _mm512_set4_epi32(0x800f800d, 0x800b8009, 0x80078005, 0x80038001);
    const __m512i one = _mm512_set1_epi16(static_cast<int16_t>(kOne)), square = _mm512_set1_epi16(kSquare);
    const __m512i linear = _mm512_set1_epi16(static_cast<int16_t>(kLinear));
    __m512i below[kCount], fraction[kCount], rest[kCount];
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) below[i] = _mm512_subs_epi16(top, steps[i]);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) fraction[i] = _mm512_shuffle_epi8(below[i], raised);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) rest[i] = _mm512_sub_epi16(linear, _mm512_mulhi_epu16(fraction[i], square));
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) rest[i] = _mm512_sub_epi16(one, _mm512_mulhi_epu16(fraction[i], rest[i]));
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) {
      const __m512i shifted = _mm512_srlv_epi16(rest[i], _mm512_shuffle_epi8(below[i], lowered));
      steps[i] = _mm512_avg_epu16(shifted, _mm512_setzero_si512());
    }
  }
  // 16-bit steps lie as packs_epi32 leaves them: [row / 4][half][row / 2 % 2][4 lanes][row % 2][4 queries].
  static int place_of(int64_t row, int c) {
    return static_cast<int>(row / 4 * 128 + c / 16 * 64 + row / 2 % 2 * 32 + c % 16 / 4 * 8 + row % 2 * 4 + c % 4);
  }
  // The greatest step of every query, which also becomes the top of its weights.
  void take_tops(float* greatest) {
    for (int half = 0; half < 2; ++half) {
      const __m512i found = _mm512_load_si512(greatest_ + half * 32);
      const __m512i both = _mm512_max_epi16(found, _mm512_shuffle_epi32(found, _MM_PERM_BADC));
      _mm512_store_si512(tops_ + half * 32, _mm512_add_epi16(both, _mm512_set1_epi16(kShift)));
      const __m512i first_words = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), both);
      const __m512i words = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(first_words));
      _mm512_store_ps(greatest + half * 16, _mm512_cvtepi32_ps(words));
    }
  }
#else
  static int place_of(int64_t row, int c) { return static_cast<int>(row * kBlock + c); }
  void take_tops(float* greatest) {
    for (int c = 0; c < kBlock; ++c) {
      greatest[c] = static_cast<float>(greatest_[c]);
      tops_[c] = static_cast<int16_t>(greatest_[c] + kShift);
    }
  }
#endif

  // Rows that do not count: their scores are those of zero keys, which may be the greatest, so that maxima are taken
  // anew from the tiles' own rows.
  void cut(int16_t* steps, int64_t num_rows) {
    for (int64_t row = num_rows; row < kTileKeys; ++row) {
      for (int c = 0; c < kBlock; ++c) steps[place_of(row, c)] = INT16_MIN;
    }
    begin_span();
    for (const int16_t* step = steps_; step < steps + kTileKeys * kBlock; ++step) {
      const int64_t place = step - steps_;
      int16_t& greatest = greatest_[kPlaces == kBlock ? place % kBlock : place % 128 / 64 * 32 + place % 32];
      greatest = *step > greatest ? *step : greatest;
    }
  }

#if defined(__AVX512BW__)
  static constexpr int kPlaces = 2 * kBlock;
#else
  static constexpr int kPlaces = kBlock;
#endif
  int16_t* steps_;  // [kSpanTiles][64 x 32]
  alignas(64) int16_t greatest_[kPlaces];
  alignas(64) int16_t tops_[kPlaces];
  alignas(64) int32_t sums_[kBlock];
};

}  // namespace tokcore::cpu::TOKCORE_ISA
