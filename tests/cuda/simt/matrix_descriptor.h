// The shared-memory matrix descriptor of wgmma: where the elements of an operand lie.
#pragma once

#include <cstdint>

namespace tokcore::simt {

struct MatrixDescriptor {
  uint32_t start;           // bytes
  uint32_t leading_offset;  // bytes
  uint32_t stride_offset;   // bytes
  uint32_t base_offset;     // rows of 128 bytes by which the swizzle's pattern is shifted
  uint32_t chunks_per_row;  // 16-byte chunks that the swizzle permutes: 1 (none), 2, 4 or 8

  static MatrixDescriptor decode(uint64_t bits) {
    static constexpr uint32_t kChunksPerRow[] = {1, 8, 4, 2};
    const auto field = [bits](int low, int width) {
      return static_cast<uint32_t>(bits >> low & ((uint64_t{1} << width) - 1));
    };
    return {field(0, 14) * 16, field(16, 14) * 16, field(32, 14) * 16, field(49, 3), kChunksPerRow[field(62, 2)]};
  }

  // Where chunk `chunk` (along k) of row `row` (along m or n) of a K-major operand begins.
  uint32_t k_major(uint32_t row, uint32_t chunk) const {
    // Groups of 8 rows are stride_offset apart. Without a swizzle the chunks of a row are leading_offset apart,
    // otherwise they follow one another.
    const uint32_t along_k = chunks_per_row == 1 ? leading_offset : 16;
    return permuted(row / 8 * stride_offset + row % 8 * chunks_per_row * 16 + chunk * along_k);
  }

  // Where chunk `chunk` (along m or n) of row `k` of an MN-major operand begins.
  uint32_t mn_major(uint32_t k, uint32_t chunk) const {
    if (chunks_per_row == 1) return permuted(chunk * stride_offset + k % 8 * 16 + k / 8 * leading_offset);
    return permuted(chunk / chunks_per_row * leading_offset + chunk % chunks_per_row * 16 +
                    k % 8 * chunks_per_row * 16 + k / 8 * stride_offset);
  }

 private:
  uint32_t permuted(uint32_t offset) const {
    const uint32_t address = start + offset;
    return address ^ (((address >> 7) - base_offset) & (chunks_per_row - 1)) << 4;
  }
};

}  // namespace tokcore::simt
