// What a warp holds of a tile of sums: strips of 16 rows, in the layout that the mma.sync and the wgmma instructions
// share.
#pragma once

#include "tokcore/cuda/kernel.h"

namespace tokcore::cuda {

// A tile of 16 * kStrips_ rows by kColumns_ columns. Lane l holds of each strip the rows l / 4 and l / 4 + 8, and of
// each group of 8 columns the columns 2 (l % 4) and 2 (l % 4) + 1. The rows of a lane are its *slots*; the four lanes
// of a row are a *quad*.
template <int kStrips_, int kColumns_>
struct StripFragment {
  static constexpr int kStrips = kStrips_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kRows = 16 * kStrips;
  static constexpr int kSlots = 2 * kStrips;
  static constexpr int kGroups = kColumns / 8;

  float values[kStrips][kGroups][4];  // of a group: {first row: even, odd column; second row: even, odd column}

  static TOKCORE_DEVICE int row_of(int slot, int lane) { return slot / 2 * 16 + slot % 2 * 8 + lane / 4; }
  static TOKCORE_DEVICE int column_of(int group, int odd, int lane) { return group * 8 + lane % 4 * 2 + odd; }

  TOKCORE_DEVICE float& at(int slot, int group, int odd) { return values[slot / 2][group][slot % 2 * 2 + odd]; }
  TOKCORE_DEVICE float at(int slot, int group, int odd) const { return values[slot / 2][group][slot % 2 * 2 + odd]; }

  TOKCORE_DEVICE void clear() {
    for_each([](float& value, int, int, int) { value = 0.0f; });
  }

  // visit(value, slot, group, odd) of everything this lane holds.
  template <class Visit>
  TOKCORE_DEVICE void for_each(Visit&& visit) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        visit(at(slot, group, 0), slot, group, 0);
        visit(at(slot, group, 1), slot, group, 1);
      }
    }
  }

  // Which lane holds a cell, and visit(value) there. Registers cannot be indexed, so every value is compared: for cells
  // that are rarely asked for.
  static TOKCORE_DEVICE int lane_of(int row, int column) { return row % 8 * 4 + column % 8 / 2; }
  template <class Visit>
  TOKCORE_DEVICE void visit_cell(int row, int column, int lane, Visit&& visit) {
    if (lane != lane_of(row, column)) return;
    const int wanted = (row / 8 * kGroups + column / 8) * 2 + column % 2;
    for_each([&](float& value, int slot, int group, int odd) {
      if ((slot * kGroups + group) * 2 + odd == wanted) visit(value);
    });
  }
};

}  // namespace tokcore::cuda
