// Scores and weighted sums of a block of bf16 rows on AMX tiles.
//
// scores^T = K q^T: 16 tokens are the rows of the first operand and are read where they lie; the queries, packed once,
// stay in tile registers where D allows. out = P V as in decode_weights.h. Where there are many rows of queries, a
// block is worth being opened for them: decode_tile_rows.h.
#pragma once

#include <cmath>

#include "tokcore/cpu/block_product.h"
#include "tokcore/kv_cache/decode_tile_rows.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Moves 16 x 16 numbers between tiles and lanes.
inline void store_transposed(const float* tile, int64_t num_rows, float* out, int64_t stride) {
  __m512i block[16];
  for (int i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(tile + i * 16);
  transpose_16x16_dwords(block);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i < num_rows) _mm512_storeu_si512(out + i * stride, block[i]);
  }
}

class TileAttention {
 public:
  static constexpr int64_t kRows = 16;
  static constexpr int64_t kFewRows = 64;  // more are attended by TileRows, which opens a block first

  TileAttention(const KvCacheParams& cache, int64_t padded_rows, Arena& arena)
      : D_(cache.head_dim),
        steps_(cache.head_dim / 32),
        queries_(arena.take<BFloat16>(padded_rows * cache.head_dim)),
        partial_(arena.take<BFloat16>(2 * kGroupTokens * cache.head_dim)),
        tiles_(arena.take<float>(2 * 2 * 256)),
        weights_(arena.take<BFloat16>(kRows * kWeightStride)),
        values_(arena.take<char>((padded_rows > kRows ? kBlockTokens / 32 * ceil_div(D_, 64) : 1) * 4096)),
        sums_(arena.take<float>(4 * 256)),
        many_(cache.head_dim, padded_rows > kFewRows ? padded_rows : 0, arena) {}

  // The queries are bf16 numbers: multiplied as they came, but for the sign, and scaled afterwards by a positive unit.
  void set_queries(const float* rows, int64_t padded_rows, float scale) {
    is_only_ = padded_rows <= kRows;
    unit_ = scale == 0.0f ? 1.0f : std::fabs(scale);
    const Vec sign(scale > 0.0f ? 1.0f : scale < 0.0f ? -1.0f : 0.0f);
    if (padded_rows > kFewRows) return many_.set_queries(rows, padded_rows, sign);
    for (int64_t chunk = 0; chunk < padded_rows; chunk += kRows) {
      for (int64_t step = 0; step < steps_; ++step) {
        __m512i block[16];
        for (int64_t row = 0; row < kRows; ++row) {
          const float* from = rows + (chunk + row) * D_ + step * 32;
          const __m256i low = (Vec::load(from) * sign).to_bfloat16();
          const __m256i high = (Vec::load(from + 16) * sign).to_bfloat16();
          block[row] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
        transpose_16x16_dwords(block);
        BFloat16* tile = queries_ + chunk * D_ + step * 512;
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + i * 32, block[i]);
      }
    }
  }
  void begin(const Split&) {}

  template <class Step>
  void score(const Block& block, int64_t first_row, int64_t num_rows, float* scores, Step&& step) {
    const BFloat16* queries = queries_ + first_row * D_;
    is_first_ = first_row == 0;
    switch (steps_) {
      case 1:
        return score_resident<1>(block, queries, num_rows, scores, step);
      case 2:
        return score_resident<2>(block, queries, num_rows, scores, step);
      case 3:
        return score_resident<3>(block, queries, num_rows, scores, step);
      case 4:
        return score_resident<4>(block, queries, num_rows, scores, step);
      default:
        return score_resident<0>(block, queries, num_rows, scores, step);
    }
  }

  float unit() const { return unit_; }

  // The weights of a row as bf16, in this engine's memory.
  float weigh(RowSoftmax& state, int64_t row, const float* scores, int64_t columns, float unit) {
    return WeighRow::take(state, scores, columns, unit, weights_ + row * kWeightStride);
  }

  TileRows& many() { return many_; }

  // The weights are those of the last rows weighed.
  template <class Step>
  void accumulate(const Block& block, int64_t num_rows, const float*, const float* shrink, float* out, Step&& step) {
    const int64_t columns = round_up(block.columns(), 32);
    const int64_t passes = ceil_div(D_, 64);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const bool wide = D_ - pass * 64 >= 64;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t column = 0; column < columns; column += 32) {
        // Values are made operands for the first rows and kept for the next ones.
        char* values = values_ + (is_only_ ? 0 : (pass * columns + column) * 128);
        if (is_first_) {
          interleave_values(block, column / 16, pass * 64, D_, values);
          if (wide) interleave_values(block, column / 16, pass * 64 + 32, D_, values + 2048);
        }
        asm volatile("" ::: "memory");
        _tile_loadd(4, weights_ + column, kWeightStride * 2);
        _tile_loadd(5, values, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, values + 1024, 64);
        _tile_dpbf16ps(1, 4, 6);
        if (wide) {
          _tile_loadd(5, values + 2048, 64);
          _tile_dpbf16ps(2, 4, 5);
          _tile_loadd(6, values + 3072, 64);
          _tile_dpbf16ps(3, 4, 6);
        }
        step(PageKind::kValues, pass * columns + column + 32, passes * columns);
      }
      _tile_stored(0, sums_, 64);
      _tile_stored(1, sums_ + 256, 64);
      _tile_stored(2, sums_ + 512, 64);
      _tile_stored(3, sums_ + 768, 64);
      asm volatile("" ::: "memory");
      add_tile_sums(sums_, wide ? 4 : 2, num_rows, shrink, D_, out + pass * 64);
    }
  }

  void finish(const float* from, float* to) const { restore_channels(from, D_, to); }

 private:
  static constexpr int64_t kWeightStride = kBlockTokens + 32;  // an odd number of lines

  // 16 rows of a segment, the missing ones zero.
  const BFloat16* rows_of(const Segment& segment, int which) {
    const BFloat16* keys = reinterpret_cast<const BFloat16*>(segment.k);
    if (segment.count == kGroupTokens) return keys;
    BFloat16* copy = partial_ + which * kGroupTokens * D_;
    __builtin_memcpy(copy, keys, static_cast<size_t>(segment.count * D_) * 2);
    __builtin_memset(copy + segment.count * D_, 0, static_cast<size_t>((kGroupTokens - segment.count) * D_) * 2);
    return copy;
  }

  template <int kSteps, class Step>
  void score_resident(const Block& block, const BFloat16* queries, int64_t num_rows, float* scores, Step& step) {
    asm volatile("" ::: "memory");
    if constexpr (kSteps > 0) _tile_loadd(4, queries, 64);
    if constexpr (kSteps > 1) _tile_loadd(5, queries + 512, 64);
    if constexpr (kSteps > 2) _tile_loadd(6, queries + 1024, 64);
    if constexpr (kSteps > 3) _tile_loadd(7, queries + 1536, 64);
    const int64_t stride = D_ * 2;
    // A pair of tiles is read back while the next pair is made.
    for (int64_t i = 0; i < block.num_segments + 2; i += 2) {
      float* made = tiles_ + i / 2 % 2 * 512;
      if (i < block.num_segments) {
        const BFloat16* first = rows_of(block.segments[i], 0);
        const BFloat16* second = i + 1 < block.num_segments ? rows_of(block.segments[i + 1], 1) : first;
        asm volatile("" ::: "memory");
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kSteps > 0) {
          _tile_stream_loadd(2, first, stride);
          _tile_dpbf16ps(0, 2, 4);
          _tile_stream_loadd(3, second, stride);
          _tile_dpbf16ps(1, 3, 4);
        }
        if constexpr (kSteps > 1) {
          _tile_stream_loadd(2, first + 32, stride);
          _tile_dpbf16ps(0, 2, 5);
          _tile_stream_loadd(3, second + 32, stride);
          _tile_dpbf16ps(1, 3, 5);
        }
        step(PageKind::kKeys, i + 1, block.num_segments);
        if constexpr (kSteps > 2) {
          _tile_stream_loadd(2, first + 64, stride);
          _tile_dpbf16ps(0, 2, 6);
          _tile_stream_loadd(3, second + 64, stride);
          _tile_dpbf16ps(1, 3, 6);
        }
        if constexpr (kSteps > 3) {
          _tile_stream_loadd(2, first + 96, stride);
          _tile_dpbf16ps(0, 2, 7);
          _tile_stream_loadd(3, second + 96, stride);
          _tile_dpbf16ps(1, 3, 7);
        }
        if constexpr (kSteps == 0) {
          for (int64_t s = 0; s < steps_; ++s) {
            _tile_loadd(4, queries + s * 512, 64);
            _tile_stream_loadd(2, first + s * 32, stride);
            _tile_dpbf16ps(0, 2, 4);
            _tile_stream_loadd(3, second + s * 32, stride);
            _tile_dpbf16ps(1, 3, 4);
          }
        }
        _tile_stored(0, made, 64);
        _tile_stored(1, made + 256, 64);
        step(PageKind::kKeys, i + 2, block.num_segments);
        asm volatile("" ::: "memory");
      }
      if (i >= 2) {
        const float* ready = tiles_ + (i / 2 + 1) % 2 * 512;
        store_transposed(ready, num_rows, scores + (i - 2) * 16, kScoreStride);
        if (i - 1 < block.num_segments) {
          store_transposed(ready + 256, num_rows, scores + (i - 1) * 16, kScoreStride);
        }
      }
    }
  }

  int64_t D_, steps_;
  float unit_ = 1.0f;
  BFloat16* queries_;  // [steps][16 pairs][16 rows][2]
  BFloat16* partial_;  // [2][16, D] tokens of a segment that is not full
  float* tiles_;       // [2][2][16 tokens][16 rows]
  BFloat16* weights_;  // [kRows, kWeightStride]
  char* values_;       // [4 tiles][16][64], with more than kRows rows for every step of a block
  float* sums_;        // [4 tiles][16][16]
  TileRows many_;
  bool is_only_ = true, is_first_ = true;  // the rows at hand among those of a block
};

}  // namespace tokcore::cpu::TOKCORE_ISA
