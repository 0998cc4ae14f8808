// The block product on AMX bf16 tiles: fp32 accumulation, 2 x 2 tiles of 16 x 16. Included by block_product.h alone.
#pragma once

#include "tokcore/cpu/transpose.h"

namespace tokcore::cpu::TOKCORE_ISA {

// One thread's tile registers, shaped for 16 rows of 64 bytes, released at the end of scope.
class TileState {
 public:
  TileState() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    // gcc 12 does not see that the instruction reads memory and may drop the stores above it.
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~TileState() { _tile_release(); }
  TileState(const TileState&) = delete;
  TileState& operator=(const TileState&) = delete;
};

struct AmxEngine {
  using Operand = BFloat16;
  using WorkerState = TileState;
  static constexpr int kStepsPerPass = 16;  // 32 KB of panel

  // A panel is a row of steps; a step holds two tiles (columns 0-15 and 16-31) of 16 rows, each row the pairs
  // (k, k+1) of 16 columns: the layout TDPBF16PS wants of its second operand.
  static constexpr int64_t kStepElements = kBlock * kBlock;
  static constexpr int64_t kTileElements = kStepElements / 2;

  template <class Step>
  static void multiply(RowOperand<BFloat16> a, const BFloat16* panel, StepList steps, bool accumulate, float* out,
                       Step&& step, int64_t out_stride = kBlock) {
    const int64_t a_bytes = a.row_stride * 2;
    const int64_t out_bytes = out_stride * 4;
    if (accumulate) {
      asm volatile("" ::: "memory");
      _tile_loadd(0, out, out_bytes);
      _tile_loadd(1, out + 16, out_bytes);
      _tile_loadd(2, out + 16 * out_stride, out_bytes);
      _tile_loadd(3, out + 16 * out_stride + 16, out_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    asm volatile("" ::: "memory");
    for (int s = 0; s < steps.count; ++s) {
      const BFloat16* left = a.data + steps[s] * a.step_stride;
      const BFloat16* right = panel + steps.in_panel(s) * kStepElements;
      _tile_loadd(6, right, 64);
      _tile_stream_loadd(4, left, a_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right + kTileElements, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stream_loadd(5, left + 16 * a.row_stride, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      step();
    }
    _tile_stored(0, out, out_bytes);
    _tile_stored(1, out + 16, out_bytes);
    _tile_stored(2, out + 16 * out_stride, out_bytes);
    _tile_stored(3, out + 16 * out_stride + 16, out_bytes);
    asm volatile("" ::: "memory");
  }

  static void pack_transposed(const BFloat16* const* rows, int64_t size, BFloat16* panel) {
    for (int64_t k = 0; k < size; k += kBlock) {
      const __mmask32 mask = size - k >= kBlock ? ~__mmask32{0} : (__mmask32{1} << (size - k)) - 1;
      for (int half = 0; half < 2; ++half) {
        __m512i block[16];
        for (int i = 0; i < 16; ++i) {
          const BFloat16* row = rows[half * 16 + i];
          block[i] = row == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, row + k);
        }
        transpose_16x16_dwords(block);
        BFloat16* tile = panel + (k / kBlock) * kStepElements + half * kTileElements;
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + i * kBlock, block[i]);
      }
    }
  }

  static void pack_columns(const BFloat16* const* rows, int64_t num_rows, int64_t column, int64_t num_columns,
                           BFloat16* panel) {
    const int64_t padded = round_up(num_rows, kBlock);
    for (int half = 0; half < 2; ++half) {
      const int64_t first = column + half * 16;
      const int64_t width = max(0, min(num_columns - first, 16));
      const __mmask16 mask = static_cast<__mmask16>((1u << width) - 1);
      auto load = [&](int64_t k) {
        const bool present = k < num_rows && rows[k] != nullptr && width > 0;
        return present ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, rows[k] + first))
                       : _mm512_setzero_si512();
      };
      for (int64_t k = 0; k < padded; k += 2) {
        const __m512i pairs = _mm512_or_si512(load(k), _mm512_slli_epi32(load(k + 1), 16));
        BFloat16* tile = panel + (k / kBlock) * kStepElements + half * kTileElements;
        _mm512_storeu_si512(tile + (k % kBlock) / 2 * kBlock, pairs);
      }
    }
  }

  static void pack_rows(const BFloat16* source, int64_t source_stride, int64_t num_rows, int64_t size, BFloat16* out,
                        int64_t out_stride) {
    for (int64_t row = 0; row < kBlock; ++row) {
      for (int64_t k = 0; k < size; k += kBlock) {
        const int64_t rest = row < num_rows ? min(size - k, kBlock) : 0;
        const __mmask32 mask = rest == kBlock ? ~__mmask32{0} : (__mmask32{1} << rest) - 1;
        const BFloat16* from = rest > 0 ? source + row * source_stride + k : source;
        _mm512_storeu_si512(out + row * out_stride + k, _mm512_maskz_loadu_epi16(mask, from));
      }
    }
  }

  static void pack_transposed_block(const BFloat16* const* rows, int64_t column, int64_t num_columns, BFloat16* out) {
    const int64_t width = min(num_columns - column, kBlock);
    const __mmask32 mask = width == kBlock ? ~__mmask32{0} : (__mmask32{1} << width) - 1;
    auto load = [&](int row) {
      return rows[row] == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, rows[row] + column);
    };
    alignas(64) static constexpr uint16_t kPairs[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i left = _mm512_load_si512(kPairs);
    const __m512i right = _mm512_add_epi16(left, _mm512_set1_epi16(16));
    __m512i low[16], high[16];  // pairs of rows of columns 0-15 and 16-31
    for (int i = 0; i < 16; ++i) {
      const __m512i even = load(2 * i), odd = load(2 * i + 1);
      low[i] = _mm512_permutex2var_epi16(even, left, odd);
      high[i] = _mm512_permutex2var_epi16(even, right, odd);
    }
    transpose_16x16_dwords(low);
    transpose_16x16_dwords(high);
    for (int i = 0; i < 16; ++i) {
      _mm512_storeu_si512(out + i * kBlock, low[i]);
      _mm512_storeu_si512(out + (i + 16) * kBlock, high[i]);
    }
  }
  // Rounded by integer instructions, ties away from zero: the units that convert are the ones that the arithmetic of a
  // softmax waits for. (A NaN stays one unless all its bits are set, which no arithmetic on bf16 gives.)
  static void store_pair(Vec even, Vec odd, BFloat16* panel, uint32_t k, uint32_t column) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i upper_halves = _mm512_set4_epi32(0x80800f0e, 0x80800b0a, 0x80800706, 0x80800302);
    const __m512i low = _mm512_shuffle_epi8(_mm512_add_epi32(_mm512_castps_si512(even.v), half), upper_halves);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd.v), half);
    BFloat16* tile = panel + k / kBlock * kStepElements + column / 16 * kTileElements;
    constexpr __mmask32 kHighWords = 0xaaaaaaaa;
    _mm512_storeu_si512(tile + k % kBlock / 2 * kBlock, _mm512_mask_mov_epi16(low, kHighWords, high));
  }
  static void store_row(const float* from, BFloat16* to) {
    for (int i = 0; i < kBlock; i += Vec::kLanes) Vec::load(from + i).store(to + i);
  }
  // to[j][i] = block[i][j] for 16 columns j of a dense 32 x 32 block: rows 2i and 2i + 1 make pairs, pairs are
  // transposed.
  static void store_transposed_half(const float* block, BFloat16* to, int64_t stride) {
    __m512i pairs[16];
    for (int i = 0; i < 16; ++i) {
      const __m256i even = Vec::load(block + 2 * i * kBlock).to_bfloat16();
      const __m256i odd = Vec::load(block + (2 * i + 1) * kBlock).to_bfloat16();
      pairs[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
    }
    transpose_16x16_dwords(pairs);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * stride, pairs[i]);
  }
};

}  // namespace tokcore::cpu::TOKCORE_ISA
