// 16 lanes (AVX-512 F, BW, VL, DQ). Included by vec.h alone.
#pragma once

namespace tokcore::cpu::TOKCORE_ISA {

struct Mask {
  __mmask16 m;
  uint32_t to_bits() const { return m; }
  static Mask from_bits(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
};

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
  Vec() = default;
  Vec(__m512 value) : v(value) {}
  explicit Vec(float value) : v(_mm512_set1_ps(value)) {}

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static Vec load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static Vec load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16()); }
  void store(Float16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  __m256i to_bfloat16() const {
#if defined(__AVX512BF16__)
    // vcvtneps2bf16 flushes subnormals; no kernel's contract reaches below 1.2e-38.
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    return _mm512_cvtepi32_epi16(rounded);
#endif
  }
};

inline Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a.v); }
inline Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask not_less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ)}; }
inline Mask is_nan(Vec a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline Vec select(Mask mask, Vec yes, Vec no) { return _mm512_mask_mov_ps(no.v, mask.m, yes.v); }
inline Vec zero_unless(Mask mask, Vec a) { return _mm512_maskz_mov_ps(mask.m, a.v); }

// y - round(y) and p * 2^round(y), for exp.
struct ExponentSplit {
  Vec fraction;
  Vec whole;
};
inline ExponentSplit split_exponent(Vec y) {
  const Vec fraction = _mm512_reduce_ps(y.v, _MM_FROUND_TO_NEAREST_INT);
  return {fraction, y - fraction};
}
inline Vec scale_by_exponent(Vec p, Vec whole) { return _mm512_scalef_ps(p.v, whole.v); }

// y - floor(y) and p * 2^floor(y).
inline Vec fraction_above_floor(Vec y) { return _mm512_reduce_ps(y.v, _MM_FROUND_TO_NEG_INF); }
inline Vec scale_by_floor(Vec p, Vec y) { return _mm512_scalef_ps(p.v, y.v); }

// The upper half of each lane's bits, rounded towards +inf: a bound from above in 16 bits.
inline void store_upper_bound(Vec a, uint16_t* p) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i carry = _mm512_andnot_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(0xffff));
  const __m512i up = _mm512_srli_epi32(_mm512_add_epi32(bits, carry), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(up));
}

}  // namespace tokcore::cpu::TOKCORE_ISA
