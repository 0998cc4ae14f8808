// Tiles of 64 whole rows in shared memory as TMA leaves them and wgmma reads them, for tensors [B, heads, rows, D] of
// 16-bit elements.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "tokcore/common/dtype.h"
#include "tokcore/cuda/row_tile.cuh"
#include "tokcore/cuda/tensor_map.h"
#include "tokcore/cuda/wgmma.cuh"

namespace tokcore::cuda {

// 64 rows of kColumns elements, cut into panels of 64 columns: in a panel a row is 128 bytes, swizzled. The same bytes
// serve as an operand whose k are the columns (queries, keys) and as one whose k are the rows (values).
template <class T, int kColumns_>
struct RowPanels {
  static_assert(sizeof(T) == 2);
  static constexpr int kRows = 64;
  static constexpr int kColumns = kColumns_;
  static constexpr int kPanelColumns = kSwizzleRowBytes / 2;
  static constexpr int kPanels = kColumns / kPanelColumns;
  static constexpr int kPanelBytes = kRows * kSwizzleRowBytes;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static constexpr int kColumnSteps = kColumns / 16;  // of wgmma
  static constexpr int kRowSteps = kRows / 16;
  static_assert(kColumns % kPanelColumns == 0);

  // The map of `rows` rows of `columns` elements of each of [batch, heads]; what lies outside is copied as zeros.
  // Strides in elements, those of dimensions of size 1 are not looked at.
  static CUtensorMap make_map(const void* data, int64_t batch, int64_t heads, int64_t rows, int64_t columns,
                              int64_t stride_batch, int64_t stride_head, int64_t stride_row) {
    const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
    const auto stride = [](int64_t count, int64_t value) {
      return count == 1 ? uint64_t{kSwizzleRowBytes} : static_cast<uint64_t>(value) * sizeof(T);
    };
    const uint64_t sizes[] = {size(columns), size(rows), size(heads), size(batch)};
    const uint64_t strides[] = {stride(rows, stride_row), stride(heads, stride_head), stride(batch, stride_batch)};
    const uint32_t box[] = {kPanelColumns, kRows, 1, 1};
    return make_tensor_map(tensor_map_element(kDTypeOf<T>), data, sizes, strides, box, TensorMapSwizzle::k128);
  }

  // Starts the copies of 64 rows from `row` on, kBytes in all. By one thread.
  static TOKCORE_DEVICE void copy(const CUtensorMap& map, uint64_t* barrier, cute::TMA::CacheHintSm90 hint,
                                  unsigned char* to, int row, int head, int batch) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      cute::SM90_TMA_LOAD_4D::copy(&map, barrier, static_cast<uint64_t>(hint), to + panel * kPanelBytes,
                                   panel * kPanelColumns, row, head, batch);
    }
  }

  // The descriptor of an operand, and the same one a number of steps of 16 columns or of 16 rows on.
  static TOKCORE_DEVICE uint64_t descriptor(const unsigned char* shared) {
    return matrix_descriptor(shared, kSwizzleGroupBytes, kPanelBytes);
  }
  static TOKCORE_DEVICE uint64_t at_columns(uint64_t descriptor, int step) {
    return moved_descriptor(descriptor, step / kStepsOfPanel * kPanelBytes + step % kStepsOfPanel * 32);
  }
  static TOKCORE_DEVICE uint64_t at_rows(uint64_t descriptor, int step) {
    return moved_descriptor(descriptor, step * 16 * kSwizzleRowBytes);
  }

  // Rows first … first + 15 at a step of 16 columns as operand A in registers.
  static TOKCORE_DEVICE FragmentA read(const unsigned char* shared, int first, int step, int lane) {
    return read_rows<RowTile<T, kRows, kPanelColumns>>(shared + step / kStepsOfPanel * kPanelBytes, first,
                                                       step % kStepsOfPanel, lane);
  }

 private:
  static constexpr int kStepsOfPanel = kPanelColumns / 16;
};

}  // namespace tokcore::cuda
