// 4 lanes (SSE2, which every x86-64 has). Included by vec.h alone.
#pragma once

namespace tokcore::cpu::TOKCORE_ISA {

float to_float(BFloat16 value);
float to_float(Float16 value);
void from_float(float value, BFloat16* out);
void from_float(float value, Float16* out);

struct Mask {
  __m128 m;
  uint32_t to_bits() const { return static_cast<uint32_t>(_mm_movemask_ps(m)); }
  static Mask from_bits(uint32_t bits) {
    const __m128i lane_bit = _mm_setr_epi32(1, 2, 4, 8);
    const __m128i picked = _mm_and_si128(_mm_set1_epi32(static_cast<int>(bits)), lane_bit);
    return {_mm_castsi128_ps(_mm_cmpeq_epi32(picked, lane_bit))};
  }
};

struct Vec {
  static constexpr int kLanes = 4;
  __m128 v;
  Vec() = default;
  Vec(__m128 value) : v(value) {}
  explicit Vec(float value) : v(_mm_set1_ps(value)) {}

  static Vec load(const float* p) { return _mm_loadu_ps(p); }
  static Vec load(const BFloat16* p) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), bits));
  }
  static Vec load(const Float16* p) {
    return _mm_setr_ps(to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3]));
  }
  void store(float* p) const { _mm_storeu_ps(p, v); }
  template <class T>
  void store(T* p) const {
    float lanes[kLanes];
    store(lanes);
    for (int i = 0; i < kLanes; ++i) from_float(lanes[i], p + i);
  }
};

inline Vec operator+(Vec a, Vec b) { return _mm_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // rounds twice: SSE2 has no fused form
inline Vec max(Vec a, Vec b) { return _mm_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm_min_ps(a.v, b.v); }
inline Vec abs(Vec a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a.v); }
inline Mask operator<(Vec a, Vec b) { return {_mm_cmplt_ps(a.v, b.v)}; }
inline Mask not_less(Vec a, Vec b) { return {_mm_cmpnlt_ps(a.v, b.v)}; }
inline Mask is_nan(Vec a) { return {_mm_cmpunord_ps(a.v, a.v)}; }
inline Vec select(Mask mask, Vec yes, Vec no) {
  return _mm_or_ps(_mm_and_ps(mask.m, yes.v), _mm_andnot_ps(mask.m, no.v));
}
inline Vec zero_unless(Mask mask, Vec a) { return _mm_and_ps(mask.m, a.v); }

// y - round(y) and p * 2^round(y), for exp; whole powers beyond the fp32 range give 0 and inf.
struct ExponentSplit {
  Vec fraction;
  Vec whole;
};
inline ExponentSplit split_exponent(Vec y) {
  const Vec clamped = min(Vec(128.0f), max(Vec(-127.0f), y));  // a NaN in y stays
  const Vec whole = _mm_cvtepi32_ps(_mm_cvtps_epi32(clamped.v));
  return {clamped - whole, whole};
}
inline Vec scale_by_exponent(Vec p, Vec whole) {
  const __m128i biased = _mm_add_epi32(_mm_cvtps_epi32(whole.v), _mm_set1_epi32(127));
  return p * Vec(_mm_castsi128_ps(_mm_slli_epi32(biased, 23)));
}

// The upper half of each lane's bits, rounded towards +inf: a bound from above in 16 bits.
inline void store_upper_bound(Vec a, uint16_t* p) {
  float lanes[Vec::kLanes];
  a.store(lanes);
  for (int i = 0; i < Vec::kLanes; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, lanes + i, 4);
    p[i] = static_cast<uint16_t>((bits + ((bits >> 31) != 0 ? 0 : 0xffff)) >> 16);
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
