// Transcendental functions of vectors, with their errors.
#pragma once

#include "tokcore/cpu/vec.h"

namespace tokcore::cpu::TOKCORE_ISA {

// e^x. Relative error below 3e-7 + 1e-7 |x| (the rounding of x log2(e) and of that constant) for results in the normal
// range; exactly 1 at 0 (else the rescaling of an online softmax drifts); 0 at -inf, inf at inf, NaN at NaN; subnormal
// results may be flushed to 0. 2^y with y = x log2(e) = whole + fraction, |fraction| <= 1/2; the polynomial is the
// minimax one of degree 5 with p(0) = 1.
inline Vec exp(Vec x) {
  const ExponentSplit y = split_exponent(x * Vec(1.44269504088896341f));
  Vec p = fma(y.fraction, Vec(1.326472731e-3f), Vec(9.671512991e-3f));
  p = fma(p, y.fraction, Vec(5.550733581e-2f));
  p = fma(p, y.fraction, Vec(2.402224243e-1f));
  p = fma(p, y.fraction, Vec(6.931470037e-1f));
  p = fma(p, y.fraction, Vec(1.0f));
  return scale_by_exponent(p, y.whole);
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
