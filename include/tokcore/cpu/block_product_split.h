// The block product of fp32 numbers on AMX bf16 tiles, to fp32 accuracy. Included by block_product.h alone.
//
// A fp32 number is the exact sum of three bf16 numbers, x = h + m + l, each a rounding of what is left. Of the nine
// products of two such sums the six greatest are computed; m l', l m' and l l' are below 2^-26 of the product and are
// left out. Six bf16 products on the tiles are two to three times faster than one fp32 product by FMA. The great terms
// h h' have accumulators of their own, so that the small ones cost no accuracy by being added to them one by one.
//
// Inf and NaN stay in h alone, and decide the result there. Parts below 1.2e-38 are taken as zero by the tiles.
#pragma once

namespace tokcore::cpu::TOKCORE_ISA {

// One number. In memory a step of 32 numbers is 32 h, then 32 m, then 32 l.
struct SplitFloat {
  BFloat16 parts[3];
};

inline Mask not_finite(Vec a) { return {_mm512_fpclass_ps_mask(a.v, 0x99)}; }

struct SplitVec {
  __m256i parts[3];  // h, m, l of 16 lanes

  explicit SplitVec(Vec x) {
    const Mask special = not_finite(x);
    constexpr float kGreatestBFloat16 = 3.38953139e38f;
    // Rounding must not turn a finite number into inf.
    const Vec bounded = max(Vec(-kGreatestBFloat16), min(Vec(kGreatestBFloat16), x));
    parts[0] = select(special, x, bounded).to_bfloat16();
    const Vec rest = select(special, Vec(0.0f), x - widen(parts[0]));
    parts[1] = rest.to_bfloat16();
    parts[2] = (rest - widen(parts[1])).to_bfloat16();
  }
  static Vec widen(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
};

struct SplitEngine {
  using Operand = SplitFloat;
  using WorkerState = TileState;
  static constexpr int kStepsPerPass = 5;  // 30 KB of panel

  static constexpr int kParts = 3;
  static constexpr int64_t kPartBytes = 64;    // of a row, in a step
  static constexpr int64_t kTileBytes = 1024;  // of a panel: 16 pairs of k by 16 columns
  static constexpr int64_t kStepBytes = kParts * 2 * kTileBytes;

  template <class Step>
  static void multiply(RowOperand<SplitFloat> a, const SplitFloat* panel, StepList steps, bool accumulate, float* out,
                       Step&& step, int64_t out_stride = kBlock) {
    const int64_t a_bytes = a.row_stride * static_cast<int64_t>(sizeof(SplitFloat));
    for (int half = 0; half < 2; ++half) {
      const char* rows = reinterpret_cast<const char*>(a.data + half * 16 * a.row_stride);
      _tile_zero(0);  // h h' for columns 0-15 and 16-31
      _tile_zero(1);
      _tile_zero(2);  // h m' + m h'
      _tile_zero(3);
      _tile_zero(4);  // h l' + m m' + l h'
      _tile_zero(5);
      asm volatile("" ::: "memory");
      for (int s = 0; s < steps.count; ++s) {
        const char* left = rows + steps[s] * a.step_stride * static_cast<int64_t>(sizeof(SplitFloat));
        const char* right = reinterpret_cast<const char*>(panel) + steps.in_panel(s) * kStepBytes;
        // Tile 6 holds the rows, tile 7 the columns, in an order that changes one of them at a time.
        _tile_stream_loadd(6, left, a_bytes);
        _tile_loadd(7, right, 64);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(7, right + kTileBytes, 64);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(7, right + 2 * kTileBytes, 64);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(7, right + 3 * kTileBytes, 64);
        _tile_dpbf16ps(3, 6, 7);
        _tile_loadd(7, right + 4 * kTileBytes, 64);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, right + 5 * kTileBytes, 64);
        _tile_dpbf16ps(5, 6, 7);
        _tile_stream_loadd(6, left + kPartBytes, a_bytes);
        _tile_loadd(7, right, 64);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(7, right + kTileBytes, 64);
        _tile_dpbf16ps(3, 6, 7);
        _tile_loadd(7, right + 2 * kTileBytes, 64);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, right + 3 * kTileBytes, 64);
        _tile_dpbf16ps(5, 6, 7);
        _tile_stream_loadd(6, left + 2 * kPartBytes, a_bytes);
        _tile_loadd(7, right, 64);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, right + kTileBytes, 64);
        _tile_dpbf16ps(5, 6, 7);
        if (half == 0) step();
      }
      join(accumulate, out + half * 16 * out_stride, out_stride);
    }
  }

  // Panel of the transposed rows, as FmaEngine's, in three parts.
  template <class T>
  static void pack_transposed(const T* const* rows, int64_t size, SplitFloat* panel) {
    for (int64_t k = 0; k < size; k += kBlock) {
      char* to = reinterpret_cast<char*>(panel) + k / kBlock * kStepBytes;
      for (int half = 0; half < 2; ++half) {
        __m512i block[kParts][16];
        for (int i = 0; i < 16; ++i) {
          const T* row = rows[half * 16 + i];
          const Step32 values(row == nullptr ? nullptr : row + k, size - k);
          for (int part = 0; part < kParts; ++part) block[part][i] = values.part(part);
        }
        for (int part = 0; part < kParts; ++part) {
          transpose_16x16_dwords(block[part]);
          char* tile = to + (part * 2 + half) * kTileBytes;
          for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + i * 64, block[part][i]);
        }
      }
    }
  }

  // Panel of 32 columns of consecutive rows, as FmaEngine's, in three parts.
  template <class T>
  static void pack_columns(const T* const* rows, int64_t num_rows, int64_t column, int64_t num_columns,
                           SplitFloat* panel) {
    for (int64_t k = 0; k < round_up(num_rows, kBlock); k += 2) {
      const Step32 even(k < num_rows ? rows[k] + column : nullptr, num_columns - column);
      const Step32 odd(k + 1 < num_rows ? rows[k + 1] + column : nullptr, num_columns - column);
      char* to = reinterpret_cast<char*>(panel) + k / kBlock * kStepBytes + k % kBlock / 2 * 64;
      for (int part = 0; part < kParts; ++part) {
        for (int half = 0; half < 2; ++half) {
          const __m512i low = _mm512_cvtepu16_epi32(even.halves[half].parts[part]);
          const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd.halves[half].parts[part]), 16);
          _mm512_storeu_si512(to + (part * 2 + half) * kTileBytes, _mm512_or_si512(low, high));
        }
      }
    }
  }

  // Row operand, as FmaEngine's, in three parts.
  template <class T>
  static void pack_rows(const T* source, int64_t source_stride, int64_t num_rows, int64_t size, SplitFloat* out,
                        int64_t out_stride) {
    for (int64_t row = 0; row < kBlock; ++row) {
      for (int64_t k = 0; k < size; k += kBlock) {
        store_step(Step32(row < num_rows ? source + row * source_stride + k : nullptr, size - k),
                   out + row * out_stride + k);
      }
    }
  }

  template <class T>
  static void pack_transposed_block(const T* const* rows, int64_t column, int64_t num_columns, SplitFloat* out) {
    alignas(64) float block[kBlock * kBlock];
    load_block(rows, column, num_columns, block);
    store_transposed_half(block, out, kBlock);
    store_transposed_half(block + kBlock / 2, out + kBlock / 2 * kBlock, kBlock);
  }
  static void store_pair(Vec even, Vec odd, SplitFloat* panel, uint32_t k, uint32_t column) {
    const SplitVec low(even), high(odd);
    char* to = reinterpret_cast<char*>(panel) + k / kBlock * kStepBytes + k % kBlock / 2 * 64;
    for (int part = 0; part < kParts; ++part) {
      const __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(low.parts[part]),
                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(high.parts[part]), 16));
      _mm512_storeu_si512(to + (part * 2 + column / 16) * kTileBytes, pairs);
    }
  }
  static void store_row(const float* from, SplitFloat* to) { store_step(Step32(from, kBlock), to); }

  // to[j] = column j of a 32 x 32 block, 16 of them.
  static void store_transposed_half(const float* block, SplitFloat* to, int64_t stride) {
    __m512i pairs[kParts][16];
    for (int i = 0; i < 16; ++i) {
      const SplitVec even(Vec::load(block + 2 * i * kBlock)), odd(Vec::load(block + (2 * i + 1) * kBlock));
      for (int part = 0; part < kParts; ++part) {
        pairs[part][i] = _mm512_or_si512(_mm512_cvtepu16_epi32(even.parts[part]),
                                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd.parts[part]), 16));
      }
    }
    for (int part = 0; part < kParts; ++part) {
      transpose_16x16_dwords(pairs[part]);
      for (int i = 0; i < 16; ++i) {
        _mm512_storeu_si512(reinterpret_cast<char*>(to + i * stride) + part * kPartBytes, pairs[part][i]);
      }
    }
  }

 private:
  // 32 numbers in parts; those at and after `count`, and all of a null pointer, are 0.
  struct Step32 {
    SplitVec halves[2];
    template <class T>
    Step32(const T* from, int64_t count)
        : halves{load(from, count), load(from + (from == nullptr ? 0 : 16), count - 16)} {}
    __m512i part(int index) const {
      return _mm512_inserti64x4(_mm512_castsi256_si512(halves[0].parts[index]), halves[1].parts[index], 1);
    }

   private:
    template <class T>
    static SplitVec load(const T* from, int64_t count) {
      if (from == nullptr || count <= 0) return SplitVec(Vec(0.0f));
      if (count >= 16) return SplitVec(Vec::load(from));
      T values[16] = {};
      for (int64_t i = 0; i < count; ++i) values[i] = from[i];
      return SplitVec(Vec::load(values));
    }
  };

  static void store_step(const Step32& values, SplitFloat* to) {
    for (int part = 0; part < kParts; ++part) {
      _mm512_storeu_si512(reinterpret_cast<char*>(to) + part * kPartBytes, values.part(part));
    }
  }

  // out (16 rows of 32) = (out +) h h' + ((h m' + m h') + (h l' + m m' + l h')). Where h h' is inf or NaN the rest is
  // left out: there it may be inf times 0.
  static void join(bool accumulate, float* out, int64_t out_stride) {
    alignas(64) float sums[6][16 * 16];
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    _tile_stored(4, sums[4], 64);
    _tile_stored(5, sums[5], 64);
    asm volatile("" ::: "memory");
    for (int row = 0; row < 16; ++row) {
      for (int half = 0; half < 2; ++half) {
        const Vec great = Vec::load(sums[half] + row * 16);
        const Vec small = Vec::load(sums[2 + half] + row * 16) + Vec::load(sums[4 + half] + row * 16);
        const Vec sum = select(not_finite(great), great, great + small);
        float* cells = out + row * out_stride + half * 16;
        (accumulate ? Vec::load(cells) + sum : sum).store(cells);
      }
    }
  }
};

}  // namespace tokcore::cpu::TOKCORE_ISA
