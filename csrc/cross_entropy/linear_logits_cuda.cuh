// What the kernels of the family share on the device: which positions are active, and logits from products.
#pragma once

#include "tokcore/common/math.h"
#include "tokcore/cross_entropy/linear_logprobs_cuda.h"
#include "tokcore/cuda/element.cuh"
#include "tokcore/cuda/math.cuh"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/cuda/strip_fragment.cuh"

namespace tokcore::cross_entropy {

using cuda::from_float;
using cuda::to_float;

// Active positions as the device finds them. Their rows of e are packed: row a of `rows` is the a-th active position's.
struct ActivePositions {
  const int32_t* count;      // [1]
  const int32_t* positions;  // [T], ascending; the first *count count
  const int32_t* indices;    // [padded T, K] of active positions; -1: none, or out of range
  int64_t padded;            // T rounded up to whole tiles
  int64_t num_indices;       // K

  // Of the active positions from `first` on, at most `most`: how many there are.
  TOKCORE_DEVICE int64_t count_from(int64_t first, int64_t most) const {
    return max(min(static_cast<int64_t>(*count) - first, most), 0);
  }
};

// From the product to logits: bias, softcap and temperature.
struct LogitTransform {
  const float* bias;  // [V] or null
  float softcap;      // 0: none
  float inverse_softcap, inverse_temperature, slope_factor;

  LogitTransform() = default;
  explicit LogitTransform(const LinearLogitsParams& params)
      : bias(params.bias),
        softcap(params.softcap),
        inverse_softcap(params.softcap > 0.0f ? 1.0f / params.softcap : 0.0f),
        inverse_temperature(1.0f / params.temperature),
        slope_factor(params.softcap > 0.0f ? params.temperature / params.softcap : 0.0f) {}

  // dz is d(e c^T + bias): the slope is 1 everywhere.
  TOKCORE_DEVICE bool is_linear() const { return softcap == 0.0f && inverse_temperature == 1.0f; }

  // Turns a fragment of products, whose first column is vocabulary row `vocab_row`, into logits.
  template <class Fragment>
  TOKCORE_DEVICE void apply(Fragment& fragment, int64_t vocab_row, int num_rows, int lane) const {
    if (bias != nullptr) add_bias(fragment, bias + vocab_row, num_rows, lane);
    if (softcap > 0.0f) {
      fragment.for_each(
          [&](float& value, int, int, int) { value = softcap * cuda::tanh_accurate(value * inverse_softcap); });
    }
    if (inverse_temperature != 1.0f) {
      fragment.for_each([&](float& value, int, int, int) { value *= inverse_temperature; });
    }
  }

  // dz / d(e c^T + bias) at z.
  TOKCORE_DEVICE float slope(float z) const {
    if (softcap == 0.0f) return inverse_temperature;
    const float capped = z * slope_factor;
    return (1.0f - capped * capped) * inverse_temperature;
  }

 private:
  template <class Fragment>
  static TOKCORE_DEVICE void add_bias(Fragment& fragment, const float* bias, int num_rows, int lane) {
#pragma unroll
    for (int group = 0; group < Fragment::kGroups; ++group) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int column = Fragment::column_of(group, odd, lane);
        const float value = column < num_rows ? bias[column] : 0.0f;
#pragma unroll
        for (int slot = 0; slot < Fragment::kSlots; ++slot) fragment.at(slot, group, odd) += value;
      }
    }
  }
};

// Calls visit(row, column, position, k) for every indices[position, k] inside a warp's tile: the active positions
// active_at(row) by the vocabulary rows from `vocab_row` on. Rows and columns count from the tile's start; all lanes
// visit the same cell at a time, those of one row in the order of k.
template <class Fragment, class ActiveAt, class Visit>
TOKCORE_DEVICE void for_each_index(const ActivePositions& active, int64_t vocab_row, int lane, ActiveAt&& active_at,
                                   Visit&& visit) {
#pragma unroll 1
  for (int first = 0; first < Fragment::kRows; first += 32) {
    const int row = first + lane;
    const int64_t mine = row < Fragment::kRows ? active_at(row) : -1;
#pragma unroll 1
    for (int64_t k = 0; k < active.num_indices; ++k) {
      const int64_t index = mine >= 0 ? active.indices[mine * active.num_indices + k] : -1;
      const int64_t column = index - vocab_row;
      unsigned found = __ballot_sync(cuda::kAllLanes, index >= 0 && column >= 0 && column < Fragment::kColumns);
      for (; found != 0; found &= found - 1) {
        const int from = __ffs(static_cast<int>(found)) - 1;
        const int at = __shfl_sync(cuda::kAllLanes, static_cast<int>(column), from);
        visit(first + from, at, __shfl_sync(cuda::kAllLanes, static_cast<int>(mine), from), k);
      }
    }
  }
}

}  // namespace tokcore::cross_entropy
