// The beginning and the end of a tile of the backward's products: what the sums start from and where they go. The same
// for every architecture.
#pragma once

#include "cross_entropy/linear_logprobs_sweeps_cuda.cuh"

namespace tokcore::cross_entropy {

// One warp's part of a tile of grad_c, from vocabulary row `vocab_row` and column `column` of C on.
template <class T, class Fragment>
class ClassifierTile {
 public:
  TOKCORE_DEVICE ClassifierTile(const ClassifierProduct<T>& product, int64_t vocab_row, int64_t column, int lane)
      : product_(product),
        vocab_row_(vocab_row),
        rows_(static_cast<int>(max(min(product.vocab_size - vocab_row, Fragment::kRows), 0))),
        lane_(lane) {
    column_ = column + Fragment::column_of(0, 0, lane);
    columns_ = static_cast<int>(min(product.hidden_size - column_, Fragment::kColumns));
  }

  TOKCORE_DEVICE void start(Fragment& fragment) const {
    fragment.clear();
    if (!product_.continues) return;
    for_each_row([&](int slot, int64_t at, int) {
      for_each_column(fragment, slot, [&](float& value, int h) { value = product_.sums[at + h]; });
    });
  }

  TOKCORE_DEVICE void finish(Fragment& fragment) const {
    for_each_row([&](int slot, int64_t at, int row) {
      if (product_.uniform != nullptr) {
        const float weight = product_.class_weight != nullptr ? product_.class_weight[vocab_row_ + row] : 1.0f;
        for_each_column(fragment, slot,
                        [&](float& value, int h) { value = fmaf(weight, product_.uniform[column_ + h], value); });
      }
      if (product_.grad_c == nullptr) {
        for_each_column(fragment, slot, [&](float value, int h) { product_.sums[at + h] = value; });
      } else {
        for_each_column(fragment, slot, [&](float value, int h) { product_.grad_c[at + h] = from_float<T>(value); });
      }
    });
  }

 private:
  // visit(slot, where the lane's columns start in grad_c, row)
  template <class Visit>
  TOKCORE_DEVICE void for_each_row(Visit&& visit) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kSlots; ++slot) {
      const int row = Fragment::row_of(slot, lane_);
      if (row < rows_) visit(slot, (vocab_row_ + row) * product_.hidden_size + column_, row);
    }
  }
  template <class Visit>
  TOKCORE_DEVICE void for_each_column(Fragment& fragment, int slot, Visit&& visit) const {
#pragma unroll
    for (int i = 0; i < 2 * Fragment::kGroups; ++i) {
      // From the lane's first column: a constant, of which no register is kept.
      const int h = i / 2 * 8 + i % 2;
      if (h < columns_) visit(fragment.at(slot, i / 2, i % 2), h);
    }
  }

  const ClassifierProduct<T>& product_;
  int64_t vocab_row_;
  int64_t column_;  // the lane's first
  int rows_;        // of the fragment that there are
  int columns_;     // from column_ on
  int lane_;
};

// One warp's part of a tile of the sums of grad_e, from row `row` (counted from product.first_active) and column
// `column` on; `rows` of them are active positions. Sums stay in fp32 from chunk to chunk: how long a chunk is changes
// no bit.
template <class T, class Fragment>
class HiddenTile {
 public:
  TOKCORE_DEVICE HiddenTile(const HiddenProduct<T>& product, int64_t row, int64_t rows, int64_t column, int lane)
      : product_(product),
        sums_(product.sums + (product.first_active + row) * product.sums_columns + column),
        rows_(static_cast<int>(max(min(rows, Fragment::kRows), 0))),
        columns_(static_cast<int>(max(min(product.sums_columns - column, Fragment::kColumns), 0))),
        lane_(lane) {}

  TOKCORE_DEVICE void start(Fragment& fragment) const {
    fragment.clear();
    if (!product_.continues) return;
    for_each_pair(fragment, [](float& even, float& odd, const float2* sum) {
      even = sum->x;
      odd = sum->y;
    });
  }
  TOKCORE_DEVICE void finish(Fragment& fragment) const {
    for_each_pair(fragment, [](float even, float odd, float2* sum) { *sum = {even, odd}; });
  }

 private:
  template <class Visit>
  TOKCORE_DEVICE void for_each_pair(Fragment& fragment, Visit&& visit) const {
#pragma unroll
    for (int slot = 0; slot < Fragment::kSlots; ++slot) {
      const int row = Fragment::row_of(slot, lane_);
      float* to = sums_ + row * product_.sums_columns;
#pragma unroll
      for (int group = 0; group < Fragment::kGroups; ++group) {
        const int h = Fragment::column_of(group, 0, lane_);
        if (row < rows_ && h < columns_) {
          visit(fragment.at(slot, group, 0), fragment.at(slot, group, 1), reinterpret_cast<float2*>(to + h));
        }
      }
    }
  }

  const HiddenProduct<T>& product_;
  float* sums_;
  int rows_, columns_;  // of the fragment that there are
  int lane_;
};

}  // namespace tokcore::cross_entropy
