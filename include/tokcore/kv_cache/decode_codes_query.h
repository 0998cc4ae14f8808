// Queries as integers of 16 bits in two signed bytes, and scores from products of those with codes.
#pragma once

#include "tokcore/kv_cache/decode_tiles.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr float kMostInteger = 32512.0f;  // 127 * 256: the high byte stays within a signed one

// Integers in [-32512, 32512] as 256 * high + low with signed bytes.
inline void store_bytes(__m512i whole, int8_t* high, int8_t* low) {
  const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
  const __m512i lower = _mm512_sub_epi32(whole, _mm512_slli_epi32(upper, 8));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(upper));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(lower));
}

// A row of a tile of sums: the products of high bytes; those of low bytes stand eight rows below.
inline __m512 join_bytes(const int32_t* sums) {
  const __m512 high = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
  const __m512 low = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + 8 * 16));
  return _mm512_fmadd_ps(high, _mm512_set1_ps(256.0f), low);
}

class CodeQueries {
 public:
  static constexpr int64_t kRows = 8;  // high and low bytes fill 16 rows

  CodeQueries(const KvCacheParams& cache, int64_t padded_rows, Arena& arena)
      : D_(cache.head_dim),
        stride_(row_stride(cache.head_dim)),
        rows_(arena.take<float>(padded_rows * D_)),
        folded_(arena.take<float>(kRows * D_)),
        chunk_bytes_(kMostVariants * 2 * kRows * stride_),
        bytes_(arena.take<int8_t>(padded_rows / kRows * chunk_bytes_)),
        units_(arena.take<float>(padded_rows)),
        sums_(arena.take<float>(padded_rows * kMostUnits)),
        padded_rows_(padded_rows) {}

  void set(const float* rows, int64_t padded_rows, float scale) {
    for (int64_t i = 0; i < padded_rows * D_; ++i) rows_[i] = rows[i] * scale;
    prepared_for_ = -1;
  }

  // Axis token: one unit of products per group of channels. Axis channel: one unit; fold() makes its operand.
  void use_scheme(const KvPages& keys) {
    by_channel_ = keys.scheme.axis == QuantAxis::kChannel;
    group_ = by_channel_ ? D_ : keys.scheme.group;
    middle_ = keys.zero == nullptr ? static_cast<float>(middle_code(keys.scheme.bits)) : 0.0f;
    num_units_ = D_ / group_;
    for (int64_t unit = 0; unit < num_units_; ++unit) {
      variants_[unit] = unit * group_ % 64 / min(group_, 64);
    }
    const int64_t wanted = by_channel_ ? 0 : group_;
    if (prepared_for_ == wanted) return;
    prepared_for_ = wanted;
    if (by_channel_) return;
    for (int64_t row = 0; row < padded_rows_; ++row) to_bytes(rows_ + row * D_, row);
  }

  int64_t num_units() const { return num_units_; }
  int64_t first_step(int64_t unit) const { return unit * group_ / 64; }
  int64_t end_step(int64_t unit) const { return ceil_div((unit + 1) * group_, 64); }
  int64_t stride() const { return stride_; }
  const int8_t* operand(int64_t first_row, int64_t unit) const {
    return bytes_ + first_row / kRows * chunk_bytes_ + variants_[unit] * 2 * kRows * stride_;
  }

  // Queries times the channels' scales of a group of tokens; what the zeros give goes into sums, and what rounding
  // loses for codes in the middle of their range: else it would shift all scores of the group alike.
  void fold(int64_t first_row, int64_t num_rows, const KvPages& keys, int64_t place, int64_t token_group) {
    const BFloat16* scale = keys.scale + place * keys.head_scales + token_group * D_;
    const BFloat16* zero = keys.zero == nullptr ? nullptr : keys.zero + place * keys.head_scales + token_group * D_;
    const float middle = static_cast<float>(middle_code(keys.scheme.bits));
    for (int64_t row = first_row; row < first_row + num_rows; ++row) {
      const float* query = rows_ + row * D_;
      float* folded = folded_ + (row - first_row) * D_;
      __m512 of_zeros = _mm512_setzero_ps(), exact = _mm512_setzero_ps();
      for (int64_t d = 0; d < D_; d += 16) {
        const __m512 value = _mm512_loadu_ps(query + d), scaled = _mm512_mul_ps(value, Vec::load(scale + d).v);
        _mm512_storeu_ps(folded + d, scaled);
        exact = _mm512_add_ps(scaled, exact);
        if (zero != nullptr) of_zeros = _mm512_fmadd_ps(value, Vec::load(zero + d).v, of_zeros);
      }
      to_bytes(folded, row);
      float& sum = sums_[row * kMostUnits];
      if (zero != nullptr) sum = _mm512_reduce_add_ps(of_zeros) + middle * (_mm512_reduce_add_ps(exact) - sum);
    }
  }

  // scores (+)= what a tile of sums [16][16 tokens] means for tokens from `token` of a page on; the first unit starts.
  void to_scores(int64_t first_row, int64_t num_rows, int64_t unit, const int32_t* tile, const KvPages& keys,
                 int64_t place, int64_t token, int64_t page_size, float* scores, int64_t stride) const {
    const int64_t at = place * keys.head_scales + unit * page_size + token;
    const __m512 scale = by_channel_ ? _mm512_set1_ps(1.0f) : Vec::load(keys.scale + at).v;
    const __m512 zero = keys.zero == nullptr ? _mm512_setzero_ps()
                        : by_channel_        ? _mm512_set1_ps(1.0f)
                                             : Vec::load(keys.zero + at).v;
    for (int64_t row = 0; row < num_rows; ++row) {
      const __m512 dot = _mm512_mul_ps(join_bytes(tile + row * 16), _mm512_set1_ps(units_[first_row + row]));
      const __m512 sum = _mm512_set1_ps(sums_[(first_row + row) * kMostUnits + unit]);
      __m512 score = keys.zero == nullptr ? _mm512_mul_ps(_mm512_fnmadd_ps(sum, _mm512_set1_ps(middle_), dot), scale)
                                          : _mm512_fmadd_ps(dot, scale, _mm512_mul_ps(sum, zero));
      float* to = scores + row * stride;
      if (unit > 0) score = _mm512_add_ps(score, _mm512_loadu_ps(to));
      _mm512_storeu_ps(to, score);
    }
  }

 private:
  static constexpr int64_t kMostUnits = 256 / 16;
  static constexpr int64_t kMostVariants = 4;  // groups of 16 channels in a step of 64
  static int64_t row_stride(int64_t head_dim) { return (ceil_div(head_dim, 64) | 1) * 64; }  // an odd number of lines

  // One row as bytes, and the sums of its integers per unit. Groups narrower than a step get operands of their own, in
  // which the other channels are zero.
  void to_bytes(const float* values, int64_t row) {
    __m512 greatest = _mm512_setzero_ps(), poison = _mm512_setzero_ps();
    for (int64_t d = 0; d < D_; d += 16) {
      const __m512 value = _mm512_loadu_ps(values + d);
      greatest = _mm512_max_ps(_mm512_abs_ps(value), greatest);
      poison = _mm512_fmadd_ps(value, _mm512_setzero_ps(), poison);
    }
    const float most = _mm512_reduce_max_ps(greatest);
    const bool usable = most > 0.0f && _mm512_reduce_add_ps(poison) == 0.0f;
    const __m512 inverse = _mm512_set1_ps(usable ? kMostInteger / most : 0.0f);
    // A NaN or an infinity makes all of the row's scores NaN.
    units_[row] = usable || most == 0.0f ? most / kMostInteger : __builtin_nanf("");
    if (_mm512_reduce_add_ps(poison) != 0.0f) units_[row] = __builtin_nanf("");
    const int64_t variants = group_ < 64 ? 64 / group_ : 1;
    int8_t* chunk = bytes_ + row / kRows * chunk_bytes_ + row % kRows * stride_;
    for (int64_t variant = 0; variant < variants; ++variant) {
      __builtin_memset(chunk + variant * 2 * kRows * stride_, 0, static_cast<size_t>(stride_));
      __builtin_memset(chunk + (variant * 2 + 1) * kRows * stride_, 0, static_cast<size_t>(stride_));
    }
    for (int64_t unit = 0; unit < num_units_; ++unit) {
      int8_t* high = chunk + variants_[unit] * 2 * kRows * stride_;
      int8_t* low = high + kRows * stride_;
      __m512i total = _mm512_setzero_si512();
      for (int64_t d = unit * group_; d < (unit + 1) * group_; d += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + d), inverse));
        store_bytes(whole, high + d, low + d);
        total = _mm512_add_epi32(total, whole);
      }
      sums_[row * kMostUnits + unit] = units_[row] * static_cast<float>(_mm512_reduce_add_epi32(total));
    }
  }

  int64_t D_, stride_;
  float* rows_;    // [padded_rows, D] scaled queries
  float* folded_;  // [kRows, D]
  int64_t chunk_bytes_;
  int8_t* bytes_;  // [chunks][variants][high, low][kRows, stride]
  float* units_;   // [padded_rows] what an integer of a row is worth
  float* sums_;    // [padded_rows, kMostUnits] sum of a row's channels by unit; axis channel: query . zeros
  int64_t padded_rows_;
  int64_t group_ = 1, num_units_ = 1, prepared_for_ = -1;
  int64_t variants_[kMostUnits] = {};  // which operand a unit multiplies with
  bool by_channel_ = false;
  float middle_ = 0.0f;
};

}  // namespace tokcore::cpu::TOKCORE_ISA
