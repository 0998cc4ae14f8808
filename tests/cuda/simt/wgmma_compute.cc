#include "simt/wgmma_compute.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace tokcore::simt {
namespace {

float from_half(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

// exponent_bits + mantissa_bits = 7. E4M3 has no infinity: only the highest mantissa of its highest exponent is NaN.
float from_small_float(uint8_t bits, int mantissa_bits, int bias, bool has_infinity) {
  const int exponent = bits >> mantissa_bits & ((1 << (7 - mantissa_bits)) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const float sign = (bits & 0x80) != 0 ? -1.0f : 1.0f;
  if (exponent == (1 << (7 - mantissa_bits)) - 1) {
    if (has_infinity && mantissa == 0) return sign * std::numeric_limits<float>::infinity();
    if (has_infinity || mantissa == (1 << mantissa_bits) - 1) return std::numeric_limits<float>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(static_cast<float>(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits);
}

struct ByteTable {
  float value[256];
  ByteTable(int mantissa_bits, int bias, bool has_infinity) {
    for (int i = 0; i < 256; ++i)
      value[i] = from_small_float(static_cast<uint8_t>(i), mantissa_bits, bias, has_infinity);
  }
};

struct HalfTable {
  float value[1 << 16];
  HalfTable() {
    for (int i = 0; i < 1 << 16; ++i) value[i] = from_half(static_cast<uint16_t>(i));
  }
};

void decode(WgmmaType type, const unsigned char* bytes, int count, float* values) {
  static const ByteTable e4m3(3, 7, false), e5m2(2, 15, true);
  static const HalfTable half;
  switch (type) {
    case WgmmaType::kBF16:
      for (int i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, bytes + 2 * i, 2);
        values[i] = std::bit_cast<float>(uint32_t{bits} << 16);
      }
      break;
    case WgmmaType::kF16:
      for (int i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, bytes + 2 * i, 2);
        values[i] = half.value[bits];
      }
      break;
    case WgmmaType::kTF32:
      for (int i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, bytes + 4 * i, 4);
        values[i] = std::bit_cast<float>(bits & 0xffffe000u);
      }
      break;
    case WgmmaType::kE4M3:
      for (int i = 0; i < count; ++i) values[i] = e4m3.value[bytes[i]];
      break;
    default:
      for (int i = 0; i < count; ++i) values[i] = e5m2.value[bytes[i]];
      break;
  }
}

void decode(WgmmaType type, const unsigned char* bytes, int count, int32_t* values) {
  for (int i = 0; i < count; ++i) values[i] = type == WgmmaType::kS8 ? static_cast<int8_t>(bytes[i]) : bytes[i];
}

// c[n] += a[k] b[k][n]
template <class Value>
[[gnu::always_inline]] inline void multiply_add(const Value* __restrict a, const Value* __restrict b, int n, int k,
                                                Value* __restrict c) {
  for (int i = 0; i < k; ++i) {
    for (int column = 0; column < n; ++column) c[column] += a[i] * b[i * n + column];
  }
}

// Products of two operands are exact in fp32, so that the instruction set makes no difference to the result.
[[gnu::target_clones("default", "avx2", "arch=x86-64-v4"), gnu::optimize("O3")]] void multiply_add_f32(
    const float* __restrict a, const float* __restrict b, int n, int k, float* __restrict c) {
  multiply_add(a, b, n, k, c);
}

[[gnu::target_clones("default", "avx2", "arch=x86-64-v4"), gnu::optimize("O3")]] void multiply_add_s32(
    const int32_t* __restrict a, const int32_t* __restrict b, int n, int k, int32_t* __restrict c) {
  multiply_add(a, b, n, k, c);
}

// B as [k][n] values.
template <class Value>
void decode_b(const WgmmaOp& op, const WgmmaOperands& operands, Value* b) {
  const int k = wgmma_k(op);
  if (op.b_is_mn_major) return decode(op.b, operands.b, k * op.n, b);
  for (int column = 0; column < op.n; ++column) {
    Value row[kWgmmaBytesOfK];
    decode(op.b, operands.b + column * kWgmmaBytesOfK, k, row);
    for (int i = 0; i < k; ++i) b[i * op.n + column] = row[i];
  }
}

int32_t add_integers(int32_t a, int32_t b, bool saturates) {
  if (!saturates) return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  const int64_t sum = int64_t{a} + b;
  return static_cast<int32_t>(
      std::clamp<int64_t>(sum, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
}

}  // namespace

void compute_wgmma(const WgmmaOp& op, WgmmaOperands& operands, bool accumulate, WgmmaTile& tile) {
  const int k = wgmma_k(op);
  const int size = kWgmmaRows * op.n;
  if (op.d == WgmmaType::kS32) {
    auto& [a, b] = operands.s32;
    decode(op.a, operands.a, kWgmmaRows * k, a);
    decode_b(op, operands, b);
    int32_t sum[kWgmmaMaxN];
    for (int row = 0; row < kWgmmaRows; ++row) {
      std::fill_n(sum, op.n, 0);
      multiply_add_s32(a + row * k, b, op.n, k, sum);
      int32_t* d = tile.s32 + row * op.n;
      for (int i = 0; i < op.n; ++i) d[i] = add_integers(accumulate ? d[i] : 0, sum[i], op.saturates);
    }
    return;
  }
  auto& [a, b] = operands.f32;
  decode(op.a, operands.a, kWgmmaRows * k, a);
  decode_b(op, operands, b);
  if (op.a_is_negated != op.b_is_negated) {
    for (int i = 0; i < kWgmmaRows * k; ++i) a[i] = -a[i];
  }
  if (!accumulate) std::fill_n(tile.f32, size, 0.0f);
  for (int row = 0; row < kWgmmaRows; ++row) multiply_add_f32(a + row * k, b, op.n, k, tile.f32 + row * op.n);
  if (op.d == WgmmaType::kF16) {
    for (int i = 0; i < size; ++i) tile.f32[i] = static_cast<float>(static_cast<_Float16>(tile.f32[i]));
  }
}

}  // namespace tokcore::simt
