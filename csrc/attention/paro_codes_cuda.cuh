// Scales and codes by the rules of attention/paro.h, bit for bit as attention/paro_codes.h makes them on the CPU: every
// step is one correctly rounded operation.
#pragma once

#include "tokcore/attention/paro.h"
#include "tokcore/cuda/element.cuh"
#include "tokcore/cuda/kernel.h"

namespace tokcore::attention {

// |x| as bits: NaN is above infinity, which is above every number.
TOKCORE_DEVICE uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

struct ParoGroupScale {
  float scale;    // NaN: the group has a number that is not finite
  float inverse;  // 0 where all codes are 0

  static TOKCORE_DEVICE ParoGroupScale of(uint32_t most_bits, ParoFormat format) {
    if (most_bits >= 0x7f800000u) return {__uint_as_float(0x7fc00000u), 0.0f};
    const float most = __uint_as_float(most_bits);
    if (most < kParoLeastMost) return {0.0f, 0.0f};
    return {__fdiv_rn(most, top_of(format)), __fdiv_rn(top_of(format), most)};
  }
};

// round(x) of |x| < 2^22 in the low bits, ties to even.
TOKCORE_DEVICE uint32_t rounded_bits(float x) { return __float_as_uint(__fadd_rn(x, 12582912.0f)); }

// The nearest e4m3 number of |x| < 464, ties to even.
TOKCORE_DEVICE uint32_t e4m3_bits(float x) {
  const uint32_t bits = __float_as_uint(x), magnitude = magnitude_bits(x);
  const uint32_t normal = (magnitude + 0x7ffffu + (magnitude >> 20 & 1)) - (120u << 23);
  const uint32_t subnormal = rounded_bits(__uint_as_float(magnitude) * 512.0f);  // steps of 2^-9 below 2^-6
  return ((magnitude >= 0x3c800000u ? normal >> 20 : subnormal) & 0xffu) | (bits >> 24 & 0x80u);
}

// The code of x in the low bits of a byte; what has no inverse has code 0, be it NaN.
TOKCORE_DEVICE uint32_t paro_code(float x, float inverse, ParoFormat format) {
  const float y = __fmul_rn(x, inverse);
  const uint32_t code = format == ParoFormat::kFp8    ? e4m3_bits(y)
                        : format == ParoFormat::kInt4 ? rounded_bits(y) & 15u
                                                      : rounded_bits(y) & 255u;
  return inverse == 0.0f ? 0 : code;
}

// Two numbers as neighbouring bfloat16.
TOKCORE_DEVICE uint32_t bf16_pair(float first, float second) {
  return static_cast<uint32_t>(cuda::from_float<BFloat16>(first).bits) |
         static_cast<uint32_t>(cuda::from_float<BFloat16>(second).bits) << 16;
}

}  // namespace tokcore::attention
