// 8 lanes (AVX2, FMA, F16C). Included by vec.h alone.
#pragma once

namespace tokcore::cpu::TOKCORE_ISA {

struct Mask {
  __m256 m;
  uint32_t to_bits() const { return static_cast<uint32_t>(_mm256_movemask_ps(m)); }
  static Mask from_bits(uint32_t bits) {
    const __m256i lane_bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i picked = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane_bit);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(picked, lane_bit))};
  }
};

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
  Vec() = default;
  Vec(__m256 value) : v(value) {}
  explicit Vec(float value) : v(_mm256_set1_ps(value)) {}

  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static Vec load(const BFloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static Vec load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(BFloat16* p) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    store_low_halves(rounded, p);
  }
  void store(Float16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_low_halves(__m256i words, void* p) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
};

inline Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
inline Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
inline Mask operator<(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask not_less(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ)}; }
inline Mask is_nan(Vec a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
inline Vec select(Mask mask, Vec yes, Vec no) { return _mm256_blendv_ps(no.v, yes.v, mask.m); }
inline Vec zero_unless(Mask mask, Vec a) { return _mm256_and_ps(mask.m, a.v); }

// y - round(y) and p * 2^round(y), for exp; whole powers beyond the fp32 range give 0 and inf.
struct ExponentSplit {
  Vec fraction;
  Vec whole;
};
inline ExponentSplit split_exponent(Vec y) {
  const Vec clamped = min(Vec(128.0f), max(Vec(-127.0f), y));  // a NaN in y stays
  const Vec whole = _mm256_round_ps(clamped.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return {clamped - whole, whole};
}
inline Vec scale_by_exponent(Vec p, Vec whole) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole.v), _mm256_set1_epi32(127));
  return p * Vec(_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}

// The upper half of each lane's bits, rounded towards +inf: a bound from above in 16 bits.
inline void store_upper_bound(Vec a, uint16_t* p) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i carry = _mm256_andnot_si256(_mm256_srai_epi32(bits, 31), _mm256_set1_epi32(0xffff));
  Vec::store_low_halves(_mm256_srli_epi32(_mm256_add_epi32(bits, carry), 16), p);
}

}  // namespace tokcore::cpu::TOKCORE_ISA
