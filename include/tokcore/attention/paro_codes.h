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

// The greatest |x| so far as its bits: NaN is above infinity, which is above every number.
inline uint32_t raise_most(uint32_t most, const float* x, int64_t count) {
  int32_t greatest = static_cast<int32_t>(most);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = static_cast<int32_t>(float_bits(x[i]) & 0x7fffffff);
    greatest = bits > greatest ? bits : greatest;
  }
  return static_cast<uint32_t>(greatest);
}

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

// Codes of a row; count is even for 4 bits, where byte j holds numbers j and j + count/2.
inline void make_row_codes(const float* x, int64_t count, float inverse, ParoFormat format, uint8_t* codes) {
  if (inverse == 0.0f) {
    const int64_t bytes = format == ParoFormat::kInt4 ? count / 2 : count;
    for (int64_t i = 0; i < bytes; ++i) codes[i] = 0;
  } else if (format == ParoFormat::kInt8) {
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(rounded_bits(x[i] * inverse));
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
