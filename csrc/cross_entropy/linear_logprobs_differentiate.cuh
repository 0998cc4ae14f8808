// The backward's work on a finished tile of products: logits, then dz. The same for every architecture.
#pragma once

#include "cross_entropy/linear_logprobs_sweeps_cuda.cuh"

namespace tokcore::cross_entropy {

// dz of one warp's part of a tile.
template <class T, class Fragment>
class TileGradient {
 public:
  // The warp's fragment begins at row `row` and column `column` of vocabulary tile `tile` of the chunk.
  TOKCORE_DEVICE TileGradient(const DifferentiateSweep<T>& sweep, int64_t tile, int64_t row, int column, int lane)
      : sweep_(sweep),
        tile_(tile),
        row_(row),
        column_(column),
        vocab_row_(sweep.first_vocab_row + tile * kGradientTile + column),
        lane_(lane) {
    const int64_t count = sweep.survivors.count(tile, *sweep.active.count);
    rows_ = static_cast<int>(max(min(count - row, Fragment::kRows), 0));
    columns_ = static_cast<int>(max(min(sweep.vocab_size - vocab_row_, Fragment::kColumns), 0));
  }

  // Turns products into dz and stores it.
  TOKCORE_DEVICE void finish(Fragment& z) {
    sweep_.gradient.transform.apply(z, vocab_row_, columns_, lane_);
#pragma unroll
    for (int slot = 0; slot < Fragment::kSlots; ++slot) differentiate_row(z, slot);
    add_indices(z);
    // Rows and columns past the end hold 0 times whatever is in c, which may be NaN.
    z.for_each([&](float& value, int slot, int group, int odd) {
      const bool inside = Fragment::row_of(slot, lane_) < rows_ && Fragment::column_of(group, odd, lane_) < columns_;
      if (!inside) value = 0.0f;
    });
    if (sweep_.bias_sums != nullptr) sum_columns(z);
    if (sweep_.nonzeros != nullptr) count_nonzeros(z);
    store(z);
  }

 private:
  TOKCORE_DEVICE int64_t active_at(int row) const {
    if (row >= rows_) return -1;
    if (sweep_.survivors.rows == nullptr) return row_ + row;
    return sweep_.survivors.rows[tile_ * sweep_.active.padded + row_ + row];
  }

  TOKCORE_DEVICE void differentiate_row(Fragment& z, int slot) const {
    const int64_t active = active_at(Fragment::row_of(slot, lane_));
    const GradientRow row = active < 0 ? GradientRow{} : sweep_.rows[active];
#pragma unroll
    for (int i = 0; i < 2 * Fragment::kGroups; ++i) {
      float& value = z.at(slot, i / 2, i % 2);
      const float weight = sweep_.gradient.has_sum ? weight_of(Fragment::column_of(i / 2, i % 2, lane_)) : 0.0f;
      value = sweep_.gradient(value, row, weight);
    }
  }
  TOKCORE_DEVICE float weight_of(int column) const {
    return sweep_.class_weight == nullptr || column >= columns_ ? 1.0f : sweep_.class_weight[vocab_row_ + column];
  }

  TOKCORE_DEVICE void add_indices(Fragment& z) const {
    const auto active_of = [&](int row) { return active_at(row); };
    const ActivePositions& positions = sweep_.active;
    for_each_index<Fragment>(positions, vocab_row_, lane_, active_of, [&](int row, int column, int active, int64_t k) {
      const int64_t at = positions.positions[active] * positions.num_indices + k;
      const float gradient = sweep_.grad_logits[at] * sweep_.gradient.transform.slope(sweep_.logits[at]);
      z.visit_cell(row, column, lane_, [&](float& value) { value += gradient; });
    });
  }

  // In fp32, before dz is rounded.
  TOKCORE_DEVICE void sum_columns(const Fragment& z) const {
    float* sums = sweep_.bias_sums + row_ / Fragment::kRows * sweep_.num_tiles * kGradientTile + tile_ * kGradientTile;
#pragma unroll
    for (int i = 0; i < 2 * Fragment::kGroups; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int slot = 0; slot < Fragment::kSlots; ++slot) sum += z.at(slot, i / 2, i % 2);
      sum = cuda::column_sum(sum);
      if (lane_ < 4) sums[column_ + Fragment::column_of(i / 2, i % 2, lane_)] = sum;
    }
  }

  TOKCORE_DEVICE void count_nonzeros(Fragment& z) const {
    int count = 0;
    z.for_each([&](float value, int, int, int) { count += value != 0.0f ? 1 : 0; });
    count = __reduce_add_sync(cuda::kAllLanes, count);
    const int64_t parts = sweep_.nonzeros_stride;
    if (lane_ == 0) {
      sweep_.nonzeros[tile_ * parts + row_ / Fragment::kRows * (kGradientTile / Fragment::kColumns) +
                      column_ / Fragment::kColumns] = count;
    }
  }

  // Rows past the last one are zero up to the end of the tile: products may read whole steps of rows.
  TOKCORE_DEVICE void store(const Fragment& z) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kSlots; ++slot) {
      const int row = Fragment::row_of(slot, lane_);
      T* to = sweep_.dz.row(tile_, row_ + row) + column_;
#pragma unroll
      for (int group = 0; group < Fragment::kGroups; ++group) {
        if (row_ + row < sweep_.active.padded) {
          *reinterpret_cast<cuda::ElementPair<T>*>(to + Fragment::column_of(group, 0, lane_)) =
              cuda::from_floats<T>(z.at(slot, group, 0), z.at(slot, group, 1));
        }
      }
    }
  }

  const DifferentiateSweep<T>& sweep_;
  int64_t tile_;
  int64_t row_;        // first row of the fragment, among the tile's survivors
  int column_;         // first column of the fragment in the tile
  int64_t vocab_row_;  // of that column
  int lane_;
  int rows_, columns_;  // of the fragment that there are
};

}  // namespace tokcore::cross_entropy
