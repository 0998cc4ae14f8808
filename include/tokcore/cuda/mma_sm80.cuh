// Warp-wide products by mma.sync, accumulated in fp32.
#pragma once

#include <cute/arch/mma_sm80.hpp>

#include "tokcore/cuda/operand_tile.cuh"

namespace tokcore::cuda {

// How operands of element type T are prepared and multiplied. prepare_* turns what a warp read into registers that are
// used for several products.
template <class T>
struct MmaSm80 {
  using PreparedA = FragmentA;
  using PreparedB = FragmentB;
  static TOKCORE_DEVICE PreparedA prepare_a(const FragmentA& a) { return a; }
  static TOKCORE_DEVICE PreparedB prepare_b(const FragmentB& b) { return b; }
  static TOKCORE_DEVICE void multiply(float (&d)[4], const PreparedA& a, const PreparedB& b) {
    using Instruction = std::conditional_t<kDTypeOf<T> == DType::kBFloat16, cute::SM80_16x8x16_F32BF16BF16F32_TN,
                                           cute::SM80_16x8x16_F32F16F16F32_TN>;
    Instruction::fma(d[0], d[1], d[2], d[3], a.x[0], a.x[1], a.x[2], a.x[3], b.x[0], b.x[1], d[0], d[1], d[2], d[3]);
  }
};

// A fp32 number as the sum of two of tf32: three of the four products of two such sums give the product to 2^-22.
template <int kSize>
struct SplitFragment {
  uint32_t whole[kSize];   // the greater part; inf and NaN as they are
  uint32_t finite[kSize];  // the same, 0 for inf and NaN
  uint32_t rest[kSize];    // what is left

  TOKCORE_DEVICE void split(const uint32_t (&x)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float rounded = __uint_as_float((x[i] + 0x1000u) & 0xffffe000u);
      const bool representable = fabsf(rounded) < __uint_as_float(0x7f800000u);
      whole[i] = representable ? __float_as_uint(rounded) : x[i];
      finite[i] = representable ? __float_as_uint(rounded) : 0u;
      rest[i] = representable ? __float_as_uint(__uint_as_float(x[i]) - rounded) : 0u;
    }
  }
};

// The mixed products take the finite parts alone: inf times a rest of 0 would be NaN where fp32 has inf. The products
// of a step are summed from zero and added to the rest by an ordinary addition: the units that multiply round every sum
// towards zero, which a long sum would feel.
template <>
struct MmaSm80<float> {
  using PreparedA = SplitFragment<4>;
  using PreparedB = SplitFragment<2>;
  static TOKCORE_DEVICE PreparedA prepare_a(const FragmentA& a) {
    PreparedA prepared;
    prepared.split(a.x);
    return prepared;
  }
  static TOKCORE_DEVICE PreparedB prepare_b(const FragmentB& b) {
    PreparedB prepared;
    prepared.split(b.x);
    return prepared;
  }
  static TOKCORE_DEVICE void multiply(float (&d)[4], const PreparedA& a, const PreparedB& b) {
    float sum[4] = {};
    multiply_parts(sum, a.finite, b.rest);
    multiply_parts(sum, a.rest, b.finite);
    multiply_parts(sum, a.whole, b.whole);
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] += sum[i];
  }

 private:
  static TOKCORE_DEVICE void multiply_parts(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    cute::SM80_16x8x8_F32TF32TF32F32_TN::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0], b[1], d[0], d[1],
                                             d[2], d[3]);
  }
};

// Integers of up to 22 bits beside their sign, as floats: sums in int32 that begin with the bits of this number are
// read as floats without a conversion, and less the same number they are what was summed.
inline constexpr float kIntegerOrigin = 12582912.0f;

// Bytes times bytes, 32 of k at a time. Sums are in int32; their bits are what the floats hold.
template <class Instruction>
TOKCORE_DEVICE void multiply_byte_fragments(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t sums[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = __float_as_uint(d[i]);
  Instruction::fma(sums[0], sums[1], sums[2], sums[3], a[0], a[1], a[2], a[3], b[0], b[1], sums[0], sums[1], sums[2],
                   sums[3]);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(sums[i]);
}

template <>
struct MmaSm80<int8_t> {
  using PreparedA = FragmentA;
  using PreparedB = FragmentB;
  static TOKCORE_DEVICE PreparedA prepare_a(const FragmentA& a) { return a; }
  static TOKCORE_DEVICE PreparedB prepare_b(const FragmentB& b) { return b; }
  static TOKCORE_DEVICE void multiply(float (&d)[4], const PreparedA& a, const PreparedB& b) {
    multiply_byte_fragments<cute::SM80_16x8x32_S32S8S8S32_TN>(d, a.x, b.x);
  }
};

}  // namespace tokcore::cuda
