// Vectors of fp32 at the instruction-set level this file is compiled for. Everything here lives in the namespace of
// that level, so that the linker cannot mix the levels' code.
//
// Vec      kLanes floats; + - *, fma, max (of a NaN and b: b), min, load and store from fp32, bf16 and fp16
// Mask     one truth value per lane; to_bits/from_bits use bit i for lane i
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "tokcore/common/dtype.h"
#include "tokcore/common/math.h"

#ifndef TOKCORE_ISA
#error "TOKCORE_ISA names the instruction-set namespace: baseline, avx2, avx512 or amx"
#endif

namespace tokcore::cpu::TOKCORE_ISA {
using tokcore::max;  // beside those of Vec
using tokcore::min;
}  // namespace tokcore::cpu::TOKCORE_ISA

#if defined(__AVX512F__)
#include "tokcore/cpu/vec_avx512.h"
#elif defined(__AVX2__)
#include "tokcore/cpu/vec_avx2.h"
#else
#include "tokcore/cpu/vec_baseline.h"
#endif

namespace tokcore::cpu::TOKCORE_ISA {

inline Vec& operator+=(Vec& a, Vec b) { return a = a + b; }
inline Vec& operator*=(Vec& a, Vec b) { return a = a * b; }

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}
inline float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // subnormal: magnitude * 2^-24
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    __builtin_memcpy(&bits, &small, 4);
  }
  bits |= sign;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

inline void from_float(float value, float* out) { *out = value; }
inline void from_float(float value, BFloat16* out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    out->bits = 0x7fc0;
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}
inline void from_float(float value, Float16* out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    out->bits = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
    out->bits = sign | 0x7c00;
  } else if (magnitude >= 0x38800000) {
    out->bits = sign | static_cast<uint16_t>((magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13);
  } else {  // the sum's last bit weighs 2^-24, so the addition rounds to fp16's subnormal grid
    float absolute;
    __builtin_memcpy(&absolute, &magnitude, 4);
    const float shifted = absolute + 0.5f;
    uint32_t shifted_bits;
    __builtin_memcpy(&shifted_bits, &shifted, 4);
    out->bits = sign | static_cast<uint16_t>(shifted_bits - 0x3f000000);
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
