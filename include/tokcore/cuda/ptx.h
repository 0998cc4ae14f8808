// Instructions that no CUDA intrinsic and no CuTe wrapper reaches, one function each. Off the device they compute the
// same by other means.
#pragma once

#include <cmath>

#include "tokcore/cuda/kernel.h"

namespace tokcore::cuda::ptx {

// 2^x in one instruction, relative error below 2^-22; subnormal operands and results are 0.
TOKCORE_HOST_DEVICE float ex2_approx_ftz(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
#endif
}

// The same value, of which the compiler knows nothing: what is computed from it is computed here, not kept in registers
// from an earlier time.
TOKCORE_DEVICE int forget(int value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

}  // namespace tokcore::cuda::ptx
