// Writing what a warp has summed.
#pragma once

#include "tokcore/cuda/element.cuh"
#include "tokcore/cuda/strip_fragment.cuh"

namespace tokcore::attention {

// Writes the rows of a fragment, times norm(slot), from column `first_column` on to rows of `columns` elements.
template <class T, class Sums, class Norm>
TOKCORE_DEVICE void store_rows(const Sums& sums, T* to, int num_rows, int first_column, int columns, int lane,
                               Norm&& norm) {
#pragma unroll
  for (int slot = 0; slot < Sums::kSlots; ++slot) {
    const int row = Sums::row_of(slot, lane);
    if (row >= num_rows) continue;
    const float factor = norm(slot);
    T* target = to + static_cast<int64_t>(row) * columns;
#pragma unroll
    for (int group = 0; group < Sums::kGroups; ++group) {
      const int column = first_column + Sums::column_of(group, 0, lane);
      const float even = sums.at(slot, group, 0) * factor, odd = sums.at(slot, group, 1) * factor;
      if (columns % 2 == 0) {
        if (column < columns) {
          *reinterpret_cast<cuda::ElementPair<T>*>(target + column) = cuda::from_floats<T>(even, odd);
        }
      } else {
        if (column < columns) target[column] = cuda::from_float<T>(even);
        if (column + 1 < columns) target[column + 1] = cuda::from_float<T>(odd);
      }
    }
  }
}

}  // namespace tokcore::attention
