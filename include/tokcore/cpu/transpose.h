// Transposition of tiles that products leave with the wrong side in lanes.
#pragma once

#include "tokcore/cpu/vec.h"

namespace tokcore::cpu::TOKCORE_ISA {

#if defined(__AVX512F__)
// Rows i of 16 dwords become columns i.
inline void transpose_16x16_dwords(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
#endif

#if defined(__AVX512F__)
inline __m256i to_words(Vec a, const BFloat16*) { return a.to_bfloat16(); }
inline __m256i to_words(Vec a, const Float16*) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }

// to[j][i] = tile[i][j] for i in [0, 32) and j in [0, num_rows) at 16 bits an element: pairs of i are transposed as
// one, and a row of `to` is a whole line.
template <class T>
void store_transposed_words(const float* tile, T* to, int64_t stride, int64_t num_rows) {
  for (int64_t first = 0; first < num_rows; first += 16) {
    __m512i pairs[16];
    for (int i = 0; i < 16; ++i) {
      const __m256i even = to_words(Vec::load(tile + 2 * i * 32 + first), to);
      const __m256i odd = to_words(Vec::load(tile + (2 * i + 1) * 32 + first), to);
      pairs[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
    }
    transpose_16x16_dwords(pairs);
    const int64_t count = min(num_rows - first, 16);
    for (int64_t j = 0; j < count; ++j) _mm512_storeu_si512(to + (first + j) * stride, pairs[j]);
  }
}
#endif

// to[j][i] = tile[i][j] of a dense 32 x 32 tile, for i in [0, count) and j in [0, num_rows).
template <class T>
void store_transposed_tile(const float* tile, T* to, int64_t stride, int64_t num_rows, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    if (count == 32) return store_transposed_words(tile, to, stride, num_rows);
  }
  for (int64_t column = 0; column < count; column += 16) {
    const int64_t width = min(count - column, 16);
    for (int64_t row = 0; row < num_rows; row += 16) {
      __m512i block[16];
      for (int i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(tile + (column + i) * 32 + row);
      transpose_16x16_dwords(block);
      for (int j = 0; j < min(num_rows - row, 16); ++j) {
        const Vec values = _mm512_castsi512_ps(block[j]);
        T* out = to + (row + j) * stride + column;
        if (width == 16) {
          values.store(out);
        } else {
          T last[16];
          values.store(last);
          for (int64_t i = 0; i < width; ++i) out[i] = last[i];
        }
      }
    }
  }
#else
  for (int64_t j = 0; j < num_rows; ++j) {
    for (int64_t i = 0; i < count; ++i) from_float(tile[i * 32 + j], to + j * stride + i);
  }
#endif
}

}  // namespace tokcore::cpu::TOKCORE_ISA
