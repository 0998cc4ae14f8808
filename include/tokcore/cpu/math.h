// Transcendental functions of vectors, with their errors.
#pragma once

#include "tokcore/cpu/vec.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr float kLog2E = 1.44269504088896341f;

// 2^y with y = whole + fraction, |fraction| <= 1/2; the polynomial is the minimax one of degree 5 with p(0) = 1.
inline Vec exp2(Vec y) {
  const ExponentSplit split = split_exponent(y);
  Vec p = fma(split.fraction, Vec(1.326472731e-3f), Vec(9.671512991e-3f));
  p = fma(p, split.fraction, Vec(5.550733581e-2f));
  p = fma(p, split.fraction, Vec(2.402224243e-1f));
  p = fma(p, split.fraction, Vec(6.931470037e-1f));
  p = fma(p, split.fraction, Vec(1.0f));
  return scale_by_exponent(p, split.whole);
}

// e^x. Relative error below 3e-7 + 1e-7 |x| (the rounding of x log2(e) and of that constant) for results in the normal
// range; exactly 1 at 0 (else the rescaling of an online softmax drifts); 0 at -inf, inf at inf, NaN at NaN; subnormal
// results may be flushed to 0.
inline Vec exp(Vec x) { return exp2(x * Vec(kLog2E)); }

// 2^y of kCount vectors, exactly 1 at 0; 0 at -inf, inf at inf, NaN at NaN; subnormal results may be flushed to 0.
// Relative error below 2e-7; with kRounds below 9e-5 where that saves work: enough for weights of which 16 bits are
// kept. Several at a time, step by step, so that no instruction waits for the one before it: then the scheduler of the
// core has room for other work, such as that of the matrix unit.
template <bool kRounds, int kCount>
__attribute__((always_inline)) inline void exp2(Vec (&y)[kCount]) {
#if defined(__AVX512F__)
  if constexpr (kRounds) {
    // Scaling takes the floor of its exponent, so that the whole part is never formed: the polynomial is that on [0,
    // 1].
    constexpr float kPolynomial[] = {7.706704202e-2f, 2.276449911e-1f, 6.951167864e-1f, 1.0f};
    Vec f[kCount], p[kCount];
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) f[i] = fraction_above_floor(y[i]);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) p[i] = Vec(kPolynomial[0]);
#pragma GCC unroll 4
    for (int k = 1; k < 4; ++k) {
#pragma GCC unroll 16
      for (int i = 0; i < kCount; ++i) p[i] = fma(p[i], f[i], Vec(kPolynomial[k]));
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) y[i] = scale_by_floor(p[i], y[i]);
    return;
  }
#endif
  for (int i = 0; i < kCount; ++i) y[i] = exp2(y[i]);
}

// tanh x, absolute error below 2e-7 and relative error below 1e-6: a series near 0, where the quotient would cancel.
inline Vec tanh(Vec x) {
  const Vec t = exp(abs(x) * Vec(-2.0f));
  const Vec magnitude = (Vec(1.0f) - t) / (Vec(1.0f) + t);
  const Vec square = x * x;
  Vec series = fma(square, Vec(62.0f / 2835.0f), Vec(-17.0f / 315.0f));
  series = fma(series, square, Vec(2.0f / 15.0f));
  series = fma(series, square, Vec(-1.0f / 3.0f));
  series = fma(series * square, x, x);
  const Vec signed_magnitude = select(x < Vec(0.0f), Vec(0.0f) - magnitude, magnitude);
  return select(abs(x) < Vec(0.25f), series, signed_magnitude);
}

}  // namespace tokcore::cpu::TOKCORE_ISA
