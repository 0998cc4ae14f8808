// Reductions over the lanes that share a row or a column of a strip fragment, in a fixed order.
#pragma once

#include "tokcore/cuda/kernel.h"

namespace tokcore::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// Over the four lanes of a quad; every lane gets the result.
TOKCORE_DEVICE float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
TOKCORE_DEVICE float quad_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// Over the eight lanes that hold the same columns.
TOKCORE_DEVICE float column_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 4);
  value += __shfl_xor_sync(kAllLanes, value, 8);
  return value + __shfl_xor_sync(kAllLanes, value, 16);
}

}  // namespace tokcore::cuda
