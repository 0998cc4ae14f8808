// Tensor maps as the emulated driver encodes them, and the swizzle that TMA and wgmma share.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace tokcore::simt {

// Permutes 16-byte chunks: the row number (128 bytes a row) is added modulo 2 to the chunk number, as far as `mask`
// goes. `address` counts from a multiple of 1024.
inline uint32_t swizzled(uint32_t address, uint32_t mask) { return address ^ ((address >> 7 & mask) << 4); }

inline constexpr int kMaxTensorRank = 5;

// What a kernel's tensor map says. Dimension 0 is the innermost.
struct TensorMap {
  unsigned char* base;
  uint64_t size[kMaxTensorRank];          // elements
  uint64_t stride_bytes[kMaxTensorRank];  // [0] is the size of an element
  uint32_t box[kMaxTensorRank];           // elements
  uint32_t rank;
  uint32_t swizzle_mask;  // 0, 1, 3 or 7
  CUtensorMapDataType type;

  uint32_t element_bytes() const { return static_cast<uint32_t>(stride_bytes[0]); }
  uint32_t row_bytes() const { return box[0] * element_bytes(); }
  uint32_t num_rows() const;
  uint32_t box_bytes() const { return row_bytes() * num_rows(); }
};

// fail()s if `map` is not 64-byte aligned or was not written by cuTensorMapEncodeTiled.
TensorMap decode_tensor_map(const void* map, const char* primitive);

}  // namespace tokcore::simt
