// The block product on signed bytes with exact int32 sums: out[32][32] (+)= a[32][K] * panel[K][32].
// AMX tiles where the level has them, widened multiplication elsewhere: one meaning, bit for bit.
#pragma once

#include "tokcore/cpu/block_product.h"
#include "tokcore/cpu/transpose.h"

namespace tokcore::cpu::TOKCORE_ISA {

// K goes in steps of 64. A panel is a row of steps; a step holds two tiles (columns 0-15 and 16-31) of 16 rows, each
// row the quadruples (k, …, k+3) of 16 columns.
inline constexpr int kInt8Step = 64;
inline constexpr int64_t kInt8TileBytes = 16 * 64;

inline int64_t int8_panel_bytes(int64_t size) { return ceil_div(size, kInt8Step) * 2 * kInt8TileBytes; }

// Panel of the transposed rows: panel(k, i) = rows[i][k]; missing rows (null) and k >= size give 0.
inline void pack_transposed_int8(const int8_t* const* rows, int64_t size, int8_t* panel) {
#if defined(__AVX512BW__)
  for (int64_t k = 0; k < size; k += kInt8Step) {
    const __mmask64 mask = size - k >= kInt8Step ? ~__mmask64{0} : (__mmask64{1} << (size - k)) - 1;
    for (int half = 0; half < 2; ++half) {
      __m512i block[16];
      for (int i = 0; i < 16; ++i) {
        const int8_t* row = rows[half * 16 + i];
        block[i] = row == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi8(mask, row + k);
      }
      transpose_16x16_dwords(block);
      int8_t* tile = panel + (k / kInt8Step * 2 + half) * kInt8TileBytes;
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + i * 64, block[i]);
    }
  }
#else
  for (int64_t k = 0; k < round_up(size, kInt8Step); ++k) {
    for (int column = 0; column < kBlock; ++column) {
      int8_t* tile = panel + (k / kInt8Step * 2 + column / 16) * kInt8TileBytes;
      const bool present = rows[column] != nullptr && k < size;
      tile[k % kInt8Step / 4 * 64 + column % 16 * 4 + k % 4] = present ? rows[column][k] : int8_t{0};
    }
  }
#endif
}

// a: 32 rows, K padded by zeros to whole steps; out dense. A thread's TileState must be in scope at the AMX level.
inline void multiply_int8(const int8_t* a, int64_t a_stride, const int8_t* panel, int64_t num_steps, bool accumulate,
                          int32_t* out) {
#if defined(__AMX_INT8__)
  constexpr int64_t kOutBytes = kBlock * 4;
  asm volatile("" ::: "memory");
  if (accumulate) {
    _tile_loadd(0, out, kOutBytes);
    _tile_loadd(1, out + 16, kOutBytes);
    _tile_loadd(2, out + 16 * kBlock, kOutBytes);
    _tile_loadd(3, out + 16 * kBlock + 16, kOutBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < num_steps; ++step) {
    _tile_loadd(6, panel + step * 2 * kInt8TileBytes, 64);
    _tile_stream_loadd(4, a + step * kInt8Step, a_stride);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, panel + (step * 2 + 1) * kInt8TileBytes, 64);
    _tile_dpbssd(1, 4, 7);
    _tile_stream_loadd(5, a + 16 * a_stride + step * kInt8Step, a_stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, out, kOutBytes);
  _tile_stored(1, out + 16, kOutBytes);
  _tile_stored(2, out + 16 * kBlock, kOutBytes);
  _tile_stored(3, out + 16 * kBlock + 16, kOutBytes);
  asm volatile("" ::: "memory");
#else
  for (int row = 0; row < kBlock; ++row) {
    int32_t sums[kBlock];
    for (int column = 0; column < kBlock; ++column) sums[column] = accumulate ? out[row * kBlock + column] : 0;
    for (int64_t k = 0; k < num_steps * kInt8Step; k += 4) {
      const int8_t* factors = a + row * a_stride + k;
      const int8_t* quads = panel + k / kInt8Step * 2 * kInt8TileBytes + k % kInt8Step / 4 * 64;
      for (int column = 0; column < kBlock; ++column) {
        const int8_t* quad = quads + column / 16 * kInt8TileBytes + column % 16 * 4;
        for (int i = 0; i < 4; ++i) sums[column] += int32_t{factors[i]} * int32_t{quad[i]};
      }
    }
    for (int column = 0; column < kBlock; ++column) out[row * kBlock + column] = sums[column];
  }
#endif
}

// Sums below 2^22 that start at its bits are 1.5 * 2^23 more when read as fp32: no conversion is needed.
inline constexpr float kFloatBias = 12582912.0f;
inline constexpr int32_t kFloatBiasBits = 0x4b400000;

// The same with a list of steps, out rows out_stride elements apart, and a panel of signed or unsigned bytes; kBiased:
// sums start at kFloatBiasBits. Elsewhere than on AMX tiles it is computed in fp32, where sums below 2^24 are exact:
// that is what callers must keep to.
template <bool kUnsignedPanel, bool kBiased>
inline void multiply_bytes(RowOperand<int8_t> a, const uint8_t* panel, StepList steps, int32_t* out,
                           int64_t out_stride = kBlock) {
#if defined(__AMX_INT8__)
  const int64_t out_bytes = out_stride * 4;
  asm volatile("" ::: "memory");
  if constexpr (kBiased) {
    // One row for all 16 rows of a tile.
    constexpr int32_t kBits = kFloatBiasBits;
    alignas(64) static constexpr int32_t kStart[16] = {kBits, kBits, kBits, kBits, kBits, kBits, kBits, kBits,
                                                       kBits, kBits, kBits, kBits, kBits, kBits, kBits, kBits};
    _tile_loadd(0, kStart, 0);
    _tile_loadd(1, kStart, 0);
    _tile_loadd(2, kStart, 0);
    _tile_loadd(3, kStart, 0);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int s = 0; s < steps.count; ++s) {
    const int8_t* left = a.data + steps[s] * a.step_stride;
    const uint8_t* right = panel + steps.in_panel(s) * 2 * kInt8TileBytes;
    _tile_loadd(6, right, 64);
    _tile_stream_loadd(4, left, a.row_stride);
    _tile_loadd(7, right + kInt8TileBytes, 64);
    _tile_stream_loadd(5, left + 16 * a.row_stride, a.row_stride);
    if constexpr (kUnsignedPanel) {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    } else {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(1, out + 16, out_bytes);
  _tile_stored(2, out + 16 * out_stride, out_bytes);
  _tile_stored(3, out + 16 * out_stride + 16, out_bytes);
  asm volatile("" ::: "memory");
#else
  float left[kBlock * kInt8Step], right[kInt8Step * kBlock], sums[kBlock * kBlock];
  if (steps.count == 0) {
    for (float& sum : sums) sum = 0.0f;
  }
  for (int s = 0; s < steps.count; ++s) {
    const int8_t* rows = a.data + steps[s] * a.step_stride;
    for (int row = 0; row < kBlock; ++row) {
      for (int k = 0; k < kInt8Step; ++k) left[row * kInt8Step + k] = rows[row * a.row_stride + k];
    }
    const uint8_t* bytes = panel + steps.in_panel(s) * 2 * kInt8TileBytes;
    for (int k = 0; k < kInt8Step; ++k) {
      for (int column = 0; column < kBlock; ++column) {
        const uint8_t byte = bytes[column / 16 * kInt8TileBytes + k / 4 * 64 + column % 16 * 4 + k % 4];
        right[k * kBlock + column] = kUnsignedPanel ? byte : static_cast<int8_t>(byte);
      }
    }
    FmaEngine::multiply({left, kInt8Step}, right, {nullptr, 0, kInt8Step / kBlock}, s > 0, sums, NoStep());
  }
  for (int row = 0; row < kBlock; ++row) {
    for (int column = 0; column < kBlock; ++column) {
      out[row * out_stride + column] =
          static_cast<int32_t>(sums[row * kBlock + column]) + (kBiased ? kFloatBiasBits : 0);
    }
  }
#endif
}

}  // namespace tokcore::cpu::TOKCORE_ISA
