// Elements in memory and their values in fp32 registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tokcore/common/dtype.h"
#include "tokcore/cuda/kernel.h"

namespace tokcore::cuda {

TOKCORE_DEVICE float to_float(float value) { return value; }
TOKCORE_DEVICE float to_float(BFloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
TOKCORE_DEVICE float to_float(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }

// Rounded to nearest even.
template <class T>
TOKCORE_DEVICE T from_float(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else if constexpr (kDTypeOf<T> == DType::kBFloat16) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
  } else {
    return {__half_as_ushort(__float2half_rn(value))};
  }
}

// Two neighbouring elements, stored at once.
template <class T>
struct alignas(2 * sizeof(T)) ElementPair {
  T first;
  T second;
};

template <class T>
TOKCORE_DEVICE ElementPair<T> from_floats(float first, float second) {
  return {from_float<T>(first), from_float<T>(second)};
}

}  // namespace tokcore::cuda
