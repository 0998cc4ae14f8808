// Elements of matrix operands as the tensor cores read them.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <cute/numeric/numeric_types.hpp>

namespace tokcore::simt {

template <class Bits>
Bits load_bits(const void* base, size_t i) {
  Bits bits;
  std::memcpy(&bits, static_cast<const unsigned char*>(base) + i * sizeof(Bits), sizeof(Bits));
  return bits;
}

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float float_of_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // The exponent's bias by a product, which is exact and handles subnormal numbers as well.
  const float value = float_of_bits(magnitude << 13) * 0x1p112f;
  return sign != 0 ? -value : value;
}

// Every value of an 8-bit floating-point type; with `finite` the type has no infinity and one NaN per sign.
inline std::array<float, 256> make_float8_table(int mantissa_bits, int bias, bool finite) {
  std::array<float, 256> table{};
  const int exponent_mask = (1 << (7 - mantissa_bits)) - 1;
  const int mantissa_mask = (1 << mantissa_bits) - 1;
  for (int i = 0; i < 256; ++i) {
    const int exponent = i >> mantissa_bits & exponent_mask;
    const int mantissa = i & mantissa_mask;
    float value = exponent == 0
                      ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                      : std::ldexp(static_cast<float>(mantissa + mantissa_mask + 1), exponent - bias - mantissa_bits);
    if (finite && (i & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
    if (!finite && exponent == exponent_mask) {
      value = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
    }
    table[static_cast<size_t>(i)] = i >= 128 ? -value : value;
  }
  return table;
}

// The i-th element of packed registers or of shared memory.
template <class T>
auto element(const void* base, size_t i) {
  if constexpr (std::is_same_v<T, cute::bfloat16_t>) {
    return float_of_bits(static_cast<uint32_t>(load_bits<uint16_t>(base, i)) << 16);
  } else if constexpr (std::is_same_v<T, cute::half_t>) {
    return float_of_half(load_bits<uint16_t>(base, i));
  } else if constexpr (std::is_same_v<T, cute::tfloat32_t>) {
    return float_of_bits(load_bits<uint32_t>(base, i) & 0xffffe000);  // the lower bits are not looked at
  } else if constexpr (std::is_same_v<T, cute::float_e4m3_t>) {
    static const std::array<float, 256> table = make_float8_table(3, 7, true);
    return table[load_bits<uint8_t>(base, i)];
  } else if constexpr (std::is_same_v<T, cute::float_e5m2_t>) {
    static const std::array<float, 256> table = make_float8_table(2, 15, false);
    return table[load_bits<uint8_t>(base, i)];
  } else {
    static_assert(std::is_same_v<T, int8_t> || std::is_same_v<T, uint8_t> || std::is_same_v<T, double>);
    return load_bits<T>(base, i);
  }
}

}  // namespace tokcore::simt
