// Fields that the params structs of the attention family share.
#pragma once

#include "fields.h"
#include "tokcore/attention/block_sparse_attention.h"

namespace tokcore::simt {

// A tensor [B, heads, rows, D]: its address, and its strides as "<name>_strides".
inline void fill(HeadsView& view, const char* name, Fields& fields) {
  fields(name, view.data);
  fields.nested((std::string(name) + "_strides").c_str(), [&](Fields& strides) {
    strides("batch", view.stride_batch);
    strides("head", view.stride_head);
    strides("row", view.stride_row);
  });
}

inline void fill(BlockMaskView& mask, Fields& fields) {
  fields("mask_bits", mask.bits);
  fields("mask_stride_batch", mask.stride_batch);
  fields("mask_stride_head", mask.stride_head);
  fields("mask_stride_row", mask.stride_row);
  fields("block_m", mask.block_m);
  fields("block_n", mask.block_n);
}

}  // namespace tokcore::simt
