// Codes of 8 and 4 bits by the rules of attention/paro.h, one row at a time. Sources that include this file are
// compiled with -ffp-contract=off: the same bits at every instruction-set level and on every backend.
#pragma once

#include "tokcore/attention/paro.h"
#include "tokcore/cpu/vec.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// The greatest |x| of 64 channels each, as bits: NaN is above infinity, which is above every number.
struct MostOf64 {
#if defined(__AVX512F__)
  static constexpr int kVectors = 4;
  __m512i lanes[kVectors];
  void clear() {
    for (__m512i& lane : lanes) lane = _mm512_setzero_si512();
  }
  void raise(int i, Vec x) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff));
    lanes[i] = _mm512_max_epu32(lanes[i], magnitude);
  }
  void store(uint32_t* bits) const {
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_si512(bits + 16 * i, lanes[i]);
  }
  __m512i in_16_lanes() const {
    return _mm512_max_epu32(_mm512_max_epu32(lanes[0], lanes[1]), _mm512_max_epu32(lanes[2], lanes[3]));
  }
  uint32_t total() const { return _mm512_reduce_max_epu32(in_16_lanes()); }
#else
  static constexpr int kVectors = 64 / Vec::kLanes;
  int32_t lanes[64];
  void clear() {
    for (int32_t& lane : lanes) lane = 0;
  }
  void raise(int i, Vec x) {
    float values[Vec::kLanes];
    x.store(values);
    for (int lane = 0; lane < Vec::kLanes; ++lane) {
      const int32_t bits = static_cast<int32_t>(float_bits(values[lane]) & 0x7fffffff);
      int32_t& most = lanes[i * Vec::kLanes + lane];
      most = bits > most ? bits : most;
    }
  }
  void store(uint32_t* bits) const { __builtin_memcpy(bits, lanes, sizeof(lanes)); }
  uint32_t total() const {
    int32_t most = 0;
    for (const int32_t lane : lanes) most = lane > most ? lane : most;
    return static_cast<uint32_t>(most);
  }
#endif
  void raise_all(const float* x) {
    for (int i = 0; i < kVectors; ++i) raise(i, Vec::load(x + i * Vec::kLanes));
  }
};

struct ParoScale {
  float scale;    // NaN: the group has a number that is not finite
  float inverse;  // 0 where all codes are 0
};
inline ParoScale paro_scale(uint32_t most_bits, ParoFormat format) {
  if (most_bits >= 0x7f800000) return {__builtin_nanf(""), 0.0f};
  const float most = float_of(most_bits);
  if (most < kParoLeastMost) return {0.0f, 0.0f};
  return {most / top_of(format), top_of(format) / most};
}

// round(x) of |x| < 2^22 in the low bits, ties to even.
inline uint32_t rounded_bits(float x) { return float_bits(x + 12582912.0f); }

// The nearest e4m3 number of |x| < 464, ties to even.
inline uint8_t to_e4m3(float x) {
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) - (120u << 23);
  const uint32_t subnormal = rounded_bits(float_of(magnitude) * 512.0f) & 0xff;  // steps of 2^-9 below 2^-6
  return static_cast<uint8_t>((magnitude >= 0x3c800000 ? normal >> 20 : subnormal) | (bits >> 24 & 0x80));
}
// bfloat16 holds every e4m3 number.
inline float from_e4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7f;
  const float value =
      magnitude >= 8 ? float_of((magnitude << 20) + (120u << 23)) : static_cast<float>(magnitude) * 0x1p-9f;
  return (code & 0x80) != 0 ? -value : value;
}

#if defined(__AVX512F__)
inline __m512i rounded_lanes(Vec x, Vec inverse) { return _mm512_cvtps_epi32((x * inverse).v); }

// Bytes of four vectors; in each 128 bits, four of the first, four of the second and so on.
inline __m512i pack_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
  return _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

// Codes of 64 numbers in 8 bits.
inline void make_64_codes(const float* x, Vec inverse, uint8_t* codes) {
  const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i packed =
      pack_lanes(rounded_lanes(Vec::load(x), inverse), rounded_lanes(Vec::load(x + 16), inverse),
                 rounded_lanes(Vec::load(x + 32), inverse), rounded_lanes(Vec::load(x + 48), inverse));
  _mm512_storeu_si512(codes, _mm512_permutexvar_epi32(places, packed));
}
#endif

// Codes of a row of a multiple of 64 numbers; in 4 bits byte j holds numbers j and j + count/2.
inline void make_row_codes(const float* x, int64_t count, float inverse, ParoFormat format, uint8_t* codes) {
  if (inverse == 0.0f) {
    const int64_t bytes = format == ParoFormat::kInt4 ? count / 2 : count;
    for (int64_t i = 0; i < bytes; ++i) codes[i] = 0;
  } else if (format == ParoFormat::kInt8) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < count; i += 64) make_64_codes(x + i, Vec(inverse), codes + i);
#else
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(rounded_bits(x[i] * inverse));
#endif
  } else if (format == ParoFormat::kInt4) {
    const int64_t half = count / 2;
    for (int64_t i = 0; i < half; ++i) {
      const uint32_t low = rounded_bits(x[i] * inverse) & 15, high = rounded_bits(x[half + i] * inverse) & 15;
      codes[i] = static_cast<uint8_t>(low | high << 4);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) codes[i] = to_e4m3(x[i] * inverse);
  }
}

// The inverse of the packing of 4-bit codes: `count` signed bytes from count/2.
inline void unpack_int4(const uint8_t* packed, int64_t count, int8_t* codes) {
  const int64_t half = count / 2;
  for (int64_t i = 0; i < half; ++i) {
    codes[i] = static_cast<int8_t>(static_cast<int8_t>(packed[i] << 4) >> 4);
    codes[half + i] = static_cast<int8_t>(static_cast<int8_t>(packed[i]) >> 4);
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
