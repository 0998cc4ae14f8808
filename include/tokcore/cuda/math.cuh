// Transcendental functions of fp32 registers, with their errors. Kernels work in powers of two: one instruction each.
#pragma once

#include "tokcore/cuda/ptx.h"

namespace tokcore::cuda {

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr double kLn2 = 0.69314718055994530942;

// 2^x: relative error below 2^-22; results below 2^-126 are 0; exactly 1 at 0, 0 at -inf, inf at inf, NaN at NaN.
TOKCORE_DEVICE float exp2_approx(float x) { return ptx::ex2_approx_ftz(x); }

// e^x: relative error below 3e-7 + 1e-7 |x|.
TOKCORE_DEVICE float exp_approx(float x) { return exp2_approx(x * kLog2E); }

// tanh x: absolute error below 3e-7, relative error below 2e-6: a series near 0, where the quotient would cancel.
TOKCORE_DEVICE float tanh_accurate(float x) {
  const float t = exp_approx(-2.0f * fabsf(x));
  const float magnitude = __fdividef(1.0f - t, 1.0f + t);
  const float square = x * x;
  float series = fmaf(square, 62.0f / 2835.0f, -17.0f / 315.0f);
  series = fmaf(series, square, 2.0f / 15.0f);
  series = fmaf(series, square, -1.0f / 3.0f);
  series = fmaf(series * square, x, x);
  return fabsf(x) < 0.25f ? series : copysignf(magnitude, x);
}

}  // namespace tokcore::cuda
