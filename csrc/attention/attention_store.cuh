// Writing what a warp has summed.
#pragma once

#include "tokcore/attention/block_sparse_attention.h"
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

// out and, of the warp that has the first column, lse of a warp's rows, the first of which is `row` of all heads' rows.
template <class T, class Sums, class Softmax>
TOKCORE_DEVICE void store_results(const Sums& sums, Softmax& softmax, const BlockSparseAttentionForwardParams& params,
                                  int64_t row, int num_rows, int first_column, int lane) {
  softmax.finish();
  store_rows(sums, static_cast<T*>(params.out) + row * params.shape.head_dim, num_rows, first_column,
             static_cast<int>(params.shape.head_dim), lane, [&](int slot) { return softmax.norm(slot); });
  if (first_column > 0) return;
#pragma unroll
  for (int slot = 0; slot < Sums::kSlots; ++slot) {
    const int at = Sums::row_of(slot, lane);
    if (lane % 4 == 0 && at < num_rows) params.lse[row + at] = softmax.log_sum_exp(slot);
  }
}

}  // namespace tokcore::attention
