// Tiles of whole rows in shared memory, and the products of attention made from them by mma.sync: rows by rows (scores)
// and weights, which stay in registers, by columns (sums of rows).
#pragma once

#include "tokcore/common/math.h"
#include "tokcore/cuda/element.cuh"
#include "tokcore/cuda/mma_sm80.cuh"
#include "tokcore/cuda/operand_tile.cuh"
#include "tokcore/cuda/strip_fragment.cuh"

namespace tokcore::cuda {

// kRows rows of kColumns elements. The 16-byte chunks of a row are permuted, so that writing a row, reading 8 x 8
// matrices along it and reading them across it all touch every bank once.
template <class T, int kRows_, int kColumns_>
struct RowTile {
  using Element = T;
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kRowBytes = kColumns * static_cast<int>(sizeof(T));
  static constexpr int kRowChunks = kRowBytes / kChunkBytes;
  static constexpr int kChunkElements = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kBytes = kRows * kRowBytes;
  static constexpr int kSteps = kRowBytes / 32;  // of mma.sync along a row
  static_assert(kRows % 8 == 0 && kRowChunks % 4 == 0);

  // Where a chunk of row `first + row` lies; first is a multiple of 8.
  static TOKCORE_DEVICE unsigned offset(unsigned first, unsigned row, unsigned chunk) {
    const unsigned swizzle = kRowChunks % 8 == 0 ? row % 8 : row / 2 % 4;
    return first * kRowBytes + row * kRowBytes + (chunk ^ swizzle) * kChunkBytes;
  }
};

// Fills a tile by cp.async from rows that lie `stride` apart; zeros past num_rows and num_columns. Rows and num_columns
// are multiples of 16 bytes.
template <class Tile, int kThreads, class T>
TOKCORE_DEVICE void fill_rows(unsigned char* shared, unsigned thread, const T* rows, int64_t stride, int num_rows,
                              int num_columns) {
  constexpr int kRowsAtOnce = kThreads / Tile::kRowChunks;
  static_assert(kThreads % Tile::kRowChunks == 0 && Tile::kRows % kRowsAtOnce == 0);
  const unsigned chunk = thread % Tile::kRowChunks;
  unsigned row = thread / Tile::kRowChunks;
  const int column = static_cast<int>(chunk) * Tile::kChunkElements;
  const T* source = rows + static_cast<int>(row) * stride + column;
#pragma unroll 8
  for (int i = 0; i < Tile::kRows / kRowsAtOnce; ++i) {
    // Only where all rows of a step lie alike in their groups of 8 is the place of a step a constant.
    const unsigned offset = kRowsAtOnce % 8 == 0 ? Tile::offset(i * kRowsAtOnce, thread / Tile::kRowChunks, chunk)
                                                 : Tile::offset(0, row, chunk);
    fill_chunk<true>(shared + offset, source, static_cast<int>(row) < num_rows, num_columns - column);
    row += kRowsAtOnce;
    source += kRowsAtOnce * stride;
  }
}

// Rows first … first + 15 of a tile as operand A at k step `step`; first is a multiple of 16.
template <class Tile>
TOKCORE_DEVICE FragmentA read_rows(const unsigned char* shared, int first, int step, int lane) {
  FragmentA read;
  const auto first_of = [=](unsigned matrix) { return first + matrix % 2 * 8; };
  const auto chunk_of = [=](unsigned matrix) { return step * 2 + matrix / 2; };
  load_matrices<Tile, false>(shared, lane, first_of, chunk_of, read.x[0], read.x[1], read.x[2], read.x[3]);
  return read;
}

// sums += A B^T over whole rows: of A those from first_a on, of B all that the fragment has columns for. kStepsAtOnce
// steps stand in one stretch of code: the longer it is, the more registers what is read ahead takes.
template <class TileA, class TileB, int kStepsAtOnce = TileA::kSteps, int kStrips, int kColumns>
TOKCORE_DEVICE void multiply_rows(StripFragment<kStrips, kColumns>& sums, const unsigned char* a, int first_a,
                                  const unsigned char* b, int lane) {
  using Mma = MmaSm80<typename TileA::Element>;
  static_assert(TileA::kColumns == TileB::kColumns && kColumns <= TileB::kRows && kColumns % 16 == 0);
  // Operands of fp32 take three times the registers: one step at a time.
#pragma unroll(sizeof(typename TileA::Element) == 4 ? 1 : kStepsAtOnce)
  for (int step = 0; step < TileA::kSteps; ++step) {
    typename Mma::PreparedA prepared[kStrips];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      prepared[strip] = Mma::prepare_a(read_rows<TileA>(a, first_a + strip * 16, step, lane));
    }
#pragma unroll
    for (int group = 0; group < kColumns / 8; group += 2) {
      FragmentB pair[2];
      const auto first_of = [=](unsigned matrix) { return group * 8 + matrix / 2 * 8; };
      const auto chunk_of = [=](unsigned matrix) { return step * 2 + matrix % 2; };
      load_matrices<TileB, false>(b, lane, first_of, chunk_of, pair[0].x[0], pair[0].x[1], pair[1].x[0], pair[1].x[1]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const typename Mma::PreparedB column = Mma::prepare_b(pair[i]);
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) {
          Mma::multiply(sums.values[strip][group + i], prepared[strip], column);
        }
      }
    }
  }
}

// Two floats as 16-bit elements of a register, the first in the lower half.
template <class T>
TOKCORE_DEVICE uint32_t pack_pair(float first, float second) {
  if constexpr (kDTypeOf<T> == DType::kBFloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) | static_cast<uint32_t>(__bfloat16_as_ushort(pair.y))
                                                                     << 16;
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    return static_cast<uint32_t>(__half_as_ushort(pair.x)) | static_cast<uint32_t>(__half_as_ushort(pair.y)) << 16;
  }
}

// How a fragment of sums becomes operand A of the next product, whose k are the fragment's columns: as it lies. Of fp32
// a lane holds columns 2 t and 2 t + 1 of a step of 8, where the instruction has k = t and t + 4: the rows of operand B
// are taken in the same order.
template <class T, int kStrips, int kColumns>
TOKCORE_DEVICE FragmentA operand_of(const StripFragment<kStrips, kColumns>& sums, int strip, int step) {
  FragmentA a;
  const auto& values = sums.values[strip];
  if constexpr (sizeof(T) == 4) {
    a.x[0] = __float_as_uint(values[step][0]);
    a.x[1] = __float_as_uint(values[step][2]);
    a.x[2] = __float_as_uint(values[step][1]);
    a.x[3] = __float_as_uint(values[step][3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = values[step * 2 + i / 2] + i % 2 * 2;
      a.x[i] = pack_pair<T>(pair[0], pair[1]);
    }
  }
  return a;
}

// Columns n .. n + 15 of rows `step` of a tile as operand B, in the order of operand_of.
template <class Tile>
TOKCORE_DEVICE void read_columns(const unsigned char* shared, int n, int step, int lane, FragmentB (&b)[2]) {
  if constexpr (sizeof(typename Tile::Element) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned row = lane % 4 * 2 + i % 2, column = n + i / 2 * 8 + lane / 4;
      b[i / 2].x[i % 2] =
          *reinterpret_cast<const uint32_t*>(shared + Tile::offset(step * 8, row, column / 4) + column % 4 * 4);
    }
  } else {
    const auto first_of = [=](unsigned matrix) { return step * 16 + matrix % 2 * 8; };
    const auto chunk_of = [=](unsigned matrix) { return n / 8 + matrix / 2; };
    load_matrices<Tile, true>(shared, lane, first_of, chunk_of, b[0].x[0], b[0].x[1], b[1].x[0], b[1].x[1]);
  }
}

// sums += weights B, of B the columns from first_column on: the weights' columns are rows of B, of which num_rows are
// needed; weights of others are 0.
template <class Tile, int kStrips, int kColumns, int kSumColumns>
TOKCORE_DEVICE void multiply_columns(StripFragment<kStrips, kSumColumns>& sums,
                                     const StripFragment<kStrips, kColumns>& weights, const unsigned char* b,
                                     int first_column, int num_rows, int lane) {
  using T = typename Tile::Element;
  using Mma = MmaSm80<T>;
  constexpr int kStepRows = 32 / static_cast<int>(sizeof(T));
  static_assert(kColumns % kStepRows == 0 && kColumns <= Tile::kRows && kSumColumns <= Tile::kColumns);
#pragma unroll
  for (int step = 0; step < kColumns / kStepRows; ++step) {
    // Of fp32 each step is behind a branch of its own, or ptxas would load and split far ahead, and spill.
    if (sizeof(T) == 4 && step * kStepRows >= num_rows) break;
    typename Mma::PreparedA prepared[kStrips];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      prepared[strip] = Mma::prepare_a(operand_of<T>(weights, strip, step));
    }
#pragma unroll
    for (int group = 0; group < kSumColumns / 8; group += 2) {
      FragmentB pair[2];
      read_columns<Tile>(b, first_column + group * 8, step, lane, pair);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const typename Mma::PreparedB column = Mma::prepare_b(pair[i]);
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) {
          Mma::multiply(sums.values[strip][group + i], prepared[strip], column);
        }
      }
    }
  }
}

}  // namespace tokcore::cuda
