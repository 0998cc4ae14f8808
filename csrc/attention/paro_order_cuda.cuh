// Which token stands at which position of a head, on the device.
#pragma once

#include "tokcore/attention/paro_cuda.h"
#include "tokcore/cuda/kernel.h"

namespace tokcore::attention {

// ParoGrid::token for all heads of a call, of which each has a code.
struct ParoOrders {
  struct Walk {  // of one code
    unsigned inner, middle;
    unsigned outer_stride, middle_stride, inner_stride;
  };
  Walk walks[kParoOrders];
  unsigned before, volume;
  uint32_t codes[kMostParoKeyHeadsCuda / 8];  // four bits a key head

  static ParoOrders of(const ParoGrid& grid, const int64_t* permutation, int64_t num_kv_heads) {
    ParoOrders orders = {};
    const int64_t strides[3] = {grid.extent[1] * grid.extent[2], grid.extent[2], 1};
    const auto small = [](int64_t value) { return static_cast<unsigned>(value); };
    for (int code = 0; code < kParoOrders; ++code) {
      const int8_t* axes = kParoAxes[code];
      orders.walks[code] = {small(grid.extent[axes[2]]), small(grid.extent[axes[1]]), small(strides[axes[0]]),
                            small(strides[axes[1]]), small(strides[axes[2]])};
    }
    orders.before = small(grid.before);
    orders.volume = small(grid.volume());
    for (int64_t head = 0; head < num_kv_heads; ++head) {
      orders.codes[head / 8] |= static_cast<uint32_t>(permutation[head]) << head % 8 * 4;
    }
    return orders;
  }

  TOKCORE_DEVICE const Walk& walk_of(int kv_head) const { return walks[codes[kv_head / 8] >> kv_head % 8 * 4 & 15]; }
  TOKCORE_DEVICE int token(const Walk& walk, int position) const {
    const unsigned index = static_cast<unsigned>(position) - before;  // of text before the grid: beyond every volume
    if (index >= volume) return position;
    const unsigned line = index / walk.inner, slice = line / walk.middle;
    return static_cast<int>(before + slice * walk.outer_stride + (line - slice * walk.middle) * walk.middle_stride +
                            (index - line * walk.inner) * walk.inner_stride);
  }
};

}  // namespace tokcore::attention
