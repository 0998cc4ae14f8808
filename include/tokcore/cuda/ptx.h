// Instructions that no CUDA intrinsic and no CuTe wrapper reaches, one function each. Off the device they compute the
// same by other means.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

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

// Pairs of fp16 numbers in a word, the first one in the low half. Off the device they are rounded twice at worst.
TOKCORE_HOST_DEVICE uint32_t pack_f16(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#else
  return static_cast<uint32_t>(__half_as_ushort(__float2half_rn(low))) |
         static_cast<uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16;
#endif
}
TOKCORE_HOST_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDA_ARCH__
  uint32_t y;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
#else
  const auto half = [](uint32_t word, int shift) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> shift)));
  };
  return pack_f16(std::fma(half(a, 0), half(b, 0), half(c, 0)), std::fma(half(a, 16), half(b, 16), half(c, 16)));
#endif
}
TOKCORE_HOST_DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  return fma_f16x2(a, b, 0x80008000u);  // -0: the sign of a product of zeros stays
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
