// Tiles of GEMM operands in shared memory: how they are laid out, filled from global memory by cp.async, and read by
// warps as operands of mma.sync.
#pragma once

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>

#include "tokcore/common/dtype.h"
#include "tokcore/cuda/kernel.h"

namespace tokcore::cuda {

// The index of an operand along which its memory is contiguous: k, over which a product sums, or the other one.
enum class Major { kK, kMn };

inline constexpr int kChunkBytes = 16;  // what one cp.async moves and one row of an 8 x 8 matrix holds

// kMn rows or columns of a product by as many k as fill 64 bytes. The 16-byte chunks of a row are permuted, so that
// reading 8 x 8 matrices and writing chunks both touch every bank once.
template <class T, Major kMajor_, int kMn_>
struct OperandTile {
  using Element = T;
  static constexpr Major kMajor = kMajor_;
  static constexpr int kMn = kMn_;
  static constexpr int kK = 64 / static_cast<int>(sizeof(T));
  static constexpr int kRows = kMajor == Major::kK ? kMn : kK;  // rows of memory
  static constexpr int kRowElements = kMajor == Major::kK ? kK : kMn;
  static constexpr int kRowBytes = kRowElements * static_cast<int>(sizeof(T));
  static constexpr int kRowChunks = kRowBytes / kChunkBytes;
  static constexpr int kChunkElements = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kBytes = kRows * kRowBytes;

  // Where a chunk of row `first + row` lies; first is a multiple of 8, which leaves the permutation as it is. What does
  // not depend on the thread is kept apart, so that it becomes part of an instruction.
  static TOKCORE_DEVICE unsigned offset(unsigned first, unsigned row, unsigned chunk) {
    const unsigned swizzle = kMajor == Major::kK ? row / 2 % 4 : sizeof(T) == 4 ? row % 4 * 2 : row % 8;
    return first * kRowBytes + row * kRowBytes + (chunk ^ swizzle) * kChunkBytes;
  }
};

// One 16-byte chunk into shared memory, zeros past `count` elements and if the row is not there; then `source` is not
// read. kAligned: all of the chunk is there or nothing, by cp.async; otherwise elements are read one by one.
template <bool kAligned, class T>
TOKCORE_DEVICE void fill_chunk(unsigned char* target, const T* source, bool has_row, int count) {
  if constexpr (kAligned) {
    using Chunk = cute::uint128_t;
    cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<Chunk>::copy(*reinterpret_cast<const Chunk*>(source),
                                                       *reinterpret_cast<Chunk*>(target), has_row && count > 0);
  } else {
    constexpr int kElements = kChunkBytes / static_cast<int>(sizeof(T));
    alignas(kChunkBytes) T elements[kElements];
#pragma unroll
    for (int i = 0; i < kElements; ++i) elements[i] = has_row && i < count ? source[i] : T{};
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(elements);
  }
}

// Fills a tile by `kThreads` threads from the rows of a matrix: of each the columns from `first_column` on, of which
// the matrix has `num_columns`. What lies outside is zero. kAligned: rows and num_columns are multiples of 16 bytes.
// offset_of(row) is where a row begins, or negative where the tile has no such row.
template <class Tile, int kThreads, bool kAligned, class T, class OffsetOf>
TOKCORE_DEVICE void fill_tile_by_row(unsigned char* shared, unsigned thread, const T* matrix, int first_column,
                                     int num_columns, OffsetOf&& offset_of) {
  constexpr int kRowsAtOnce = kThreads / Tile::kRowChunks;
  static_assert(kThreads % Tile::kRowChunks == 0 && Tile::kRows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);
  const unsigned chunk = thread % Tile::kRowChunks, first_row = thread / Tile::kRowChunks;
  const int column = first_column + static_cast<int>(chunk) * Tile::kChunkElements;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kRowsAtOnce; ++i) {
    const int64_t offset = offset_of(static_cast<int>(i * kRowsAtOnce + first_row));
    fill_chunk<kAligned>(shared + Tile::offset(i * kRowsAtOnce, first_row, chunk), matrix + offset + column,
                         offset >= 0, num_columns - column);
  }
}

// The same for `num_rows` rows that lie `stride` apart from `rows` on.
template <class Tile, int kThreads, bool kAligned, class T>
TOKCORE_DEVICE void fill_tile(unsigned char* shared, unsigned thread, const T* rows, int64_t stride, int num_rows,
                              int first_column, int num_columns) {
  constexpr int kRowsAtOnce = kThreads / Tile::kRowChunks;
  static_assert(kThreads % Tile::kRowChunks == 0 && Tile::kRows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);
  const unsigned chunk = thread % Tile::kRowChunks, first_row = thread / Tile::kRowChunks;
  const int column = first_column + static_cast<int>(chunk) * Tile::kChunkElements;
  const T* source = rows + first_row * stride + column;
#pragma unroll(kAligned ? Tile::kRows / kRowsAtOnce : 1)
  for (int i = 0; i < Tile::kRows / kRowsAtOnce; ++i) {
    const bool has_row = i * kRowsAtOnce + static_cast<int>(first_row) < num_rows;
    fill_chunk<kAligned>(shared + Tile::offset(i * kRowsAtOnce, first_row, chunk), source, has_row,
                         num_columns - column);
    source += kRowsAtOnce * stride;
  }
}

// Registers of one step of mma.sync (32 bytes of k): m16n8k16 of 16-bit elements, m16n8k8 of fp32.
struct FragmentA {
  uint32_t x[4];
};
struct FragmentB {
  uint32_t x[2];
};

// Four 8 x 8 matrices of 16-bit elements. Of matrix i the lane reads row lane % 8 of those that start at first_of(i),
// at chunk chunk_of(i).
template <class Tile, bool kTransposed, class FirstOf, class ChunkOf>
TOKCORE_DEVICE void load_matrices(const unsigned char* shared, unsigned lane, FirstOf&& first_of, ChunkOf&& chunk_of,
                                  uint32_t& x0, uint32_t& x1, uint32_t& x2, uint32_t& x3) {
  const unsigned offset = Tile::offset(first_of(lane / 8), lane % 8, chunk_of(lane / 8));
  const auto& row = *reinterpret_cast<const cute::uint128_t*>(shared + offset);
  if constexpr (kTransposed) {
    cute::SM75_U16x8_LDSM_T::copy(row, x0, x1, x2, x3);
  } else {
    cute::SM75_U32x4_LDSM_N::copy(row, x0, x1, x2, x3);
  }
}

// The element of row first + row at column first_column + column; first is a multiple of 4, first_column of 8.
template <class Tile>
TOKCORE_DEVICE uint32_t load_word(const unsigned char* shared, unsigned first, unsigned row, unsigned first_column,
                                  unsigned column) {
  static_assert(sizeof(typename Tile::Element) == 4 && Tile::kMajor == Major::kMn);
  const unsigned chunk = first_column / 4 + column / 4;
  return *reinterpret_cast<const uint32_t*>(shared + Tile::offset(first, row, chunk) + column % 4 * 4);
}

// Rows m .. m + 15 of operand A at k step `step`; m is a multiple of 16.
template <class Tile>
TOKCORE_DEVICE FragmentA read_a(const unsigned char* shared, unsigned m, unsigned step, unsigned lane) {
  FragmentA a;
  if constexpr (Tile::kMajor == Major::kK) {
    const auto first_of = [=](unsigned matrix) { return m + matrix % 2 * 8; };
    const auto chunk_of = [=](unsigned matrix) { return step * 2 + matrix / 2; };
    load_matrices<Tile, false>(shared, lane, first_of, chunk_of, a.x[0], a.x[1], a.x[2], a.x[3]);
  } else if constexpr (sizeof(typename Tile::Element) == 2) {
    const auto first_of = [=](unsigned matrix) { return step * 16 + matrix / 2 * 8; };
    const auto chunk_of = [=](unsigned matrix) { return m / 8 + matrix % 2; };
    load_matrices<Tile, true>(shared, lane, first_of, chunk_of, a.x[0], a.x[1], a.x[2], a.x[3]);
  } else {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      a.x[i] = load_word<Tile>(shared, step * 8 + i / 2 * 4, lane % 4, m + i % 2 * 8, lane / 4);
    }
  }
  return a;
}

// Columns n .. n + 15 of operand B at k step `step`, as two groups of 8; n is a multiple of 16.
template <class Tile>
TOKCORE_DEVICE void read_b(const unsigned char* shared, unsigned n, unsigned step, unsigned lane, FragmentB (&b)[2]) {
  if constexpr (Tile::kMajor == Major::kK) {
    const auto first_of = [=](unsigned matrix) { return n + matrix / 2 * 8; };
    const auto chunk_of = [=](unsigned matrix) { return step * 2 + matrix % 2; };
    load_matrices<Tile, false>(shared, lane, first_of, chunk_of, b[0].x[0], b[0].x[1], b[1].x[0], b[1].x[1]);
  } else if constexpr (sizeof(typename Tile::Element) == 2) {
    const auto first_of = [=](unsigned matrix) { return step * 16 + matrix % 2 * 8; };
    const auto chunk_of = [=](unsigned matrix) { return n / 8 + matrix / 2; };
    load_matrices<Tile, true>(shared, lane, first_of, chunk_of, b[0].x[0], b[0].x[1], b[1].x[0], b[1].x[1]);
  } else {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      b[i / 2].x[i % 2] = load_word<Tile>(shared, step * 8 + i % 2 * 4, lane % 4, n + i / 2 * 8, lane / 4);
    }
  }
}

}  // namespace tokcore::cuda
