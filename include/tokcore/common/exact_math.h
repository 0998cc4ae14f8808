// Arithmetic in fp64 that gives the same bits wherever it runs: every operation is one correctly rounded IEEE
// multiplication, addition or division, none is fused. Sources that include this are compiled with -ffp-contract=off.
//
// Probabilities are whole numbers, 2^bits for the most likely token: sums of them do not depend on the order of adding,
// and whoever compares them decides alike.
#pragma once

#include <cstdint>

// Functions of both sides: they are static, so that each instruction-set level keeps its own code of them; and members
// of classes that a backend makes its own.
#if defined(__CUDACC__)
#define TOKCORE_SHARED_FUNCTION static __host__ __device__ __forceinline__
#define TOKCORE_SHARED_MEMBER __device__ __forceinline__
#else
#define TOKCORE_SHARED_FUNCTION static inline
#define TOKCORE_SHARED_MEMBER
#endif

namespace tokcore::exact {

TOKCORE_SHARED_FUNCTION double mul(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
TOKCORE_SHARED_FUNCTION double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}
TOKCORE_SHARED_FUNCTION float mul(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
TOKCORE_SHARED_FUNCTION float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

TOKCORE_SHARED_FUNCTION int64_t bits_of(double value) {
#if defined(__CUDA_ARCH__)
  return __double_as_longlong(value);
#else
  int64_t bits;
  __builtin_memcpy(&bits, &value, 8);
  return bits;
#endif
}
TOKCORE_SHARED_FUNCTION double double_of(int64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(bits);
#else
  double value;
  __builtin_memcpy(&value, &bits, 8);
  return value;
#endif
}
TOKCORE_SHARED_FUNCTION uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
#endif
}

// A double of [0, 2^51] to the nearest whole number, ties to even.
inline constexpr double kWhole = 0x1p52;
TOKCORE_SHARED_FUNCTION double whole(double value) { return add(add(value, kWhole), -kWhole); }
TOKCORE_SHARED_FUNCTION uint64_t to_integer(double value) {
  return static_cast<uint64_t>(bits_of(add(value, kWhole)) - int64_t{0x4330000000000000});
}

// 2^y for y <= 0 times 2^bits, bits <= 50, to the nearest whole number: 2^bits at 0, 0 from y = -bits - 2 on. Before
// the rounding the relative error is below 5e-16.
TOKCORE_SHARED_FUNCTION double scaled_exp2(double y, int bits) {
  constexpr double kShift = 0x1.8p52;  // adding it leaves the nearest whole number in the low bits
  constexpr int64_t kShiftBits = 0x4338000000000000;
  const double bounded = y > -70.0 ? y : -70.0;
  const double shifted = add(bounded, kShift);
  const double f = add(bounded, -add(shifted, -kShift));
  double p = 2.5678435993488196e-11;  // ln(2)^12 / 12!, then the other terms of the series
  p = add(mul(p, f), 4.44553827187081e-10);
  p = add(mul(p, f), 7.054911620801121e-09);
  p = add(mul(p, f), 1.0178086009239696e-07);
  p = add(mul(p, f), 1.3215486790144305e-06);
  p = add(mul(p, f), 1.5252733804059838e-05);
  p = add(mul(p, f), 0.00015403530393381606);
  p = add(mul(p, f), 0.0013333558146428441);
  p = add(mul(p, f), 0.009618129107628477);
  p = add(mul(p, f), 0.055504108664821576);
  p = add(mul(p, f), 0.2402265069591007);
  p = add(mul(p, f), 0.6931471805599453);
  p = add(mul(p, f), 1.0);
  const int64_t exponent = bits_of(shifted) - kShiftBits + bits + 1023;
  return whole(mul(p, double_of(static_cast<int64_t>(static_cast<uint64_t>(exponent) << 52))));
}

// log2(a) for a normal a > 0. Relative error below 1e-15 for a <= 3/4.
TOKCORE_SHARED_FUNCTION double log2_by_series(double s) {  // 2 atanh(s) / ln 2, |s| <= 0.172
  const double square = mul(s, s);
  double sum = 1.0 / 21.0;
  sum = add(mul(sum, square), 1.0 / 19.0);
  sum = add(mul(sum, square), 1.0 / 17.0);
  sum = add(mul(sum, square), 1.0 / 15.0);
  sum = add(mul(sum, square), 1.0 / 13.0);
  sum = add(mul(sum, square), 1.0 / 11.0);
  sum = add(mul(sum, square), 1.0 / 9.0);
  sum = add(mul(sum, square), 1.0 / 7.0);
  sum = add(mul(sum, square), 1.0 / 5.0);
  sum = add(mul(sum, square), 1.0 / 3.0);
  sum = add(mul(sum, square), 1.0);
  return mul(mul(sum, s), 2.8853900817779268);  // 2 / ln 2
}
TOKCORE_SHARED_FUNCTION double log2(double a) {
  constexpr int64_t kHalfRoot = 0x3fe6a09e667f3bcd;  // sqrt(1/2)
  const int64_t steps = (bits_of(a) - kHalfRoot) >> 52;
  const double m = double_of(bits_of(a) - static_cast<int64_t>(static_cast<uint64_t>(steps) << 52));
  return add(static_cast<double>(steps), log2_by_series(add(m, -1.0) / add(m, 1.0)));
}
// -log2(1 - x) for 0 < x < 1/4, of full relative precision for small x.
TOKCORE_SHARED_FUNCTION double minus_log2_complement(double x) { return log2_by_series(x / add(2.0, -x)); }

// e^-x for x >= 0, absolute error below 1e-14.
TOKCORE_SHARED_FUNCTION double exp_minus(double x) {
  return mul(scaled_exp2(mul(-x, 1.4426950408889634), 50), 0x1p-50);
}

}  // namespace tokcore::exact
