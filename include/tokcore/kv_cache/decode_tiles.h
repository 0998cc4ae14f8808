// Scores and weighted sums of a block of bf16 rows on AMX tiles.
//
// scores^T = K q^T: 16 tokens are the rows of the first operand and are read where they lie; the queries, packed once,
// stay in tile registers where D allows. out = P V: pairs of tokens are interleaved by two unpack instructions a line,
// which permutes the channels within 32; finish() undoes that once a split.
#pragma once

#include "tokcore/cpu/block_product.h"
#include "tokcore/kv_cache/decode_fma.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Moves 16 x 16 numbers between tiles and lanes.
inline void store_transposed(const float* tile, int64_t num_rows, float scale, float* out, int64_t stride) {
  __m512i block[16];
  for (int i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(tile + i * 16);
  transpose_16x16_dwords(block);
  const __m512 factor = _mm512_set1_ps(scale);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i < num_rows) _mm512_storeu_ps(out + i * stride, _mm512_mul_ps(_mm512_castsi512_ps(block[i]), factor));
  }
}

class TileAttention {
 public:
  static constexpr int64_t kRows = 32;  // two chunks of 16, so that a tile of keys or values serves both

  TileAttention(const KvCacheParams& cache, int64_t padded_rows, Arena& arena)
      : D_(cache.head_dim),
        steps_(cache.head_dim / 32),
        queries_(arena.take<BFloat16>(padded_rows * cache.head_dim)),
        partial_(arena.take<BFloat16>(2 * kGroupTokens * cache.head_dim)),
        tiles_(arena.take<float>(2 * 4 * 256)),
        weights_(arena.take<BFloat16>(kRows * kWeightStride)),
        values_(arena.take<char>(4 * 1024)),
        open_values_(arena.take<char>(padded_rows > kChunk ? kBlockTokens / 32 * ceil_div(D_, 64) * 4096 : 0)),
        sums_(arena.take<float>(4 * 256)) {}

  // The queries are bf16 numbers: multiplied as they came, scaled afterwards.
  void set_queries(const float* rows, int64_t padded_rows, float scale) {
    scale_ = scale;
    for (int64_t chunk = 0; chunk < padded_rows; chunk += kChunk) {
      for (int64_t step = 0; step < steps_; ++step) {
        __m512i block[16];
        for (int64_t row = 0; row < kChunk; ++row) {
          const float* from = rows + (chunk + row) * D_ + step * 32;
          const __m256i low = Vec::load(from).to_bfloat16(), high = Vec::load(from + 16).to_bfloat16();
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
    if (num_rows > kChunk) return score_pair(block, queries, num_rows, scores, step);
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

  // Before the rows of a block: with several chunks of them, values are interleaved once for all.
  void open_values(const Block& block, int64_t num_rows) {
    values_are_open_ = num_rows > kChunk;
    if (!values_are_open_) return;
    const int64_t steps = ceil_div(block.columns(), 32);
    for (int64_t pass = 0; pass < ceil_div(D_, 64); ++pass) {
      for (int64_t step = 0; step < steps; ++step)
        interleave_pass(block, step, pass, open_values_at(steps, pass, step));
    }
  }

  // The weights of a row as bf16, in this engine's memory; `rows` of them follow, 1 to kRows.
  float weigh(RowSoftmax& state, int64_t row, int64_t rows, float* scores, int64_t columns) {
    const Vec zero(0.0f);
    BFloat16* to = weights_ + row * kWeightStride;
    const float shrink = state.take_rounded(scores, columns, to);
    const int64_t end = round_up(columns, 32);
    if (columns < end) zero.store(to + columns);
    if (row + 1 < rows) return shrink;
    for (int64_t rest = rows; rest < round_up(rows, kChunk); ++rest) {
      for (int64_t i = 0; i < end; i += 16) zero.store(weights_ + rest * kWeightStride + i);
    }
    return shrink;
  }

  // The weights are those of the last rows weighed.
  template <class Step>
  void accumulate(const Block& block, int64_t num_rows, const float*, const float* shrink, float* out, Step&& step) {
    if (num_rows > kChunk) return accumulate_pair(block, num_rows, shrink, out, step);
    const int64_t columns = round_up(block.columns(), 32);
    const int64_t passes = ceil_div(D_, 64);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const bool wide = D_ - pass * 64 >= 64;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t column = 0; column < columns; column += 32) {
        const char* values = values_;
        if (values_are_open_) {
          values = open_values_at(columns / 32, pass, column / 32);
        } else {
          interleave_pass(block, column / 32, pass, values_);
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
      add_sums(sums_, wide ? 4 : 2, num_rows, shrink, out + pass * 64);
    }
  }

  // Column j of the first tile of 32 channels is channel 8 (j / 4) + j % 4, of the second four more.
  void finish(const float* from, float* to) const {
    for (int64_t d = 0; d < D_; d += 32) {
      for (int64_t j = 0; j < 16; j += 4) {
        __builtin_memcpy(to + d + 2 * j, from + d + j, 16);
        __builtin_memcpy(to + d + 2 * j + 4, from + d + 16 + j, 16);
      }
    }
  }

 private:
  static constexpr int64_t kWeightStride = kBlockTokens + 32;  // an odd number of lines

  static constexpr int64_t kChunk = 16;

  // out [num_rows, D] = out * shrink + sums, num_tiles tiles of 16 channels side by side.
  void add_sums(const float* sums, int64_t num_tiles, int64_t num_rows, const float* shrink, float* out) const {
    for (int64_t row = 0; row < num_rows; ++row) {
      const __m512 factor = _mm512_set1_ps(shrink[row]);
      for (int64_t tile = 0; tile < num_tiles; ++tile) {
        float* cells = out + row * D_ + tile * 16;
        const __m512 sum = _mm512_loadu_ps(sums + tile * 256 + row * 16);
        _mm512_storeu_ps(cells, _mm512_fmadd_ps(_mm512_loadu_ps(cells), factor, sum));
      }
    }
  }

  // Scores of two chunks: two tiles of tokens by two of queries. A batch is read back while the next one is made.
  template <class Step>
  void score_pair(const Block& block, const BFloat16* queries, int64_t num_rows, float* scores, Step& step) {
    const int64_t stride = D_ * 2;
    asm volatile("" ::: "memory");
    for (int64_t i = 0; i < block.num_segments + 2; i += 2) {
      float* made = tiles_ + i / 2 % 2 * 1024;
      if (i < block.num_segments) {
        const BFloat16* first = rows_of(block.segments[i], 0);
        const BFloat16* second = i + 1 < block.num_segments ? rows_of(block.segments[i + 1], 1) : first;
        asm volatile("" ::: "memory");
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t s = 0; s < steps_; ++s) {
          _tile_loadd(4, queries + s * 512, 64);
          _tile_loadd(5, queries + kChunk * D_ + s * 512, 64);
          _tile_loadd(6, first + s * 32, stride);
          _tile_dpbf16ps(0, 6, 4);
          _tile_dpbf16ps(1, 6, 5);
          _tile_loadd(7, second + s * 32, stride);
          _tile_dpbf16ps(2, 7, 4);
          _tile_dpbf16ps(3, 7, 5);
        }
        _tile_stored(0, made, 64);
        _tile_stored(1, made + 256, 64);
        _tile_stored(2, made + 512, 64);
        _tile_stored(3, made + 768, 64);
        step(PageKind::kKeys, i + 2, block.num_segments);
        asm volatile("" ::: "memory");
      }
      if (i < 2) continue;
      const float* ready = tiles_ + (i / 2 + 1) % 2 * 1024;
      for (int64_t j = 0; j < 2 && i - 2 + j < block.num_segments; ++j, ready += 512) {
        float* to = scores + (i - 2 + j) * 16;
        store_transposed(ready, kChunk, scale_, to, kScoreStride);
        store_transposed(ready + 256, num_rows - kChunk, scale_, to + kChunk * kScoreStride, kScoreStride);
      }
    }
  }

  // The weighted sums of two chunks: two tiles of weights by two of values, which are open.
  template <class Step>
  void accumulate_pair(const Block& block, int64_t num_rows, const float* shrink, float* out, Step& step) {
    const int64_t columns = round_up(block.columns(), 32);
    const BFloat16* lower = weights_ + kChunk * kWeightStride;
    for (int64_t channel = 0; channel < D_; channel += 32) {
      const char* values = open_values_at(columns / 32, channel / 64, 0) + channel % 64 * 64;
      asm volatile("" ::: "memory");
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t column = 0; column < columns; column += 32, values += 4096) {
        _tile_loadd(4, weights_ + column, kWeightStride * 2);
        _tile_loadd(5, lower + column, kWeightStride * 2);
        _tile_loadd(6, values, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, values + 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      step(PageKind::kValues, channel + 32, D_);
      _tile_stored(0, sums_, 64);
      _tile_stored(1, sums_ + 256, 64);
      _tile_stored(2, sums_ + 512, 64);
      _tile_stored(3, sums_ + 768, 64);
      asm volatile("" ::: "memory");
      add_sums(sums_, 2, kChunk, shrink, out + channel);
      add_sums(sums_ + 512, 2, num_rows - kChunk, shrink + kChunk, out + kChunk * D_ + channel);
    }
  }

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
        store_transposed(ready, num_rows, scale_, scores + (i - 2) * 16, kScoreStride);
        if (i - 1 < block.num_segments) {
          store_transposed(ready + 256, num_rows, scale_, scores + (i - 1) * 16, kScoreStride);
        }
      }
    }
  }

  // Four tiles of 32 tokens and 64 channels.
  char* open_values_at(int64_t steps, int64_t pass, int64_t step) const {
    return open_values_ + (pass * steps + step) * 4096;
  }
  void interleave_pass(const Block& block, int64_t step, int64_t pass, char* to) const {
    interleave(block, step * 2, pass * 64, to);
    if (D_ - pass * 64 >= 64) interleave(block, step * 2, pass * 64 + 32, to + 2048);
  }

  // 32 tokens of 32 channels as the second operand: two tiles whose rows are pairs of tokens.
  void interleave(const Block& block, int64_t segment, int64_t channel, char* low) const {
    char* high = low + 1024;
    for (int64_t half = 0; half < 2; ++half, ++segment) {
      const bool present = segment < block.num_segments;
      const int64_t count = present ? block.segments[segment].count : 0;
      const BFloat16* rows = present ? reinterpret_cast<const BFloat16*>(block.segments[segment].v) + channel : nullptr;
      for (int64_t token = 0; token < kGroupTokens; token += 2, low += 64, high += 64) {
        const __m512i zero = _mm512_setzero_si512();
        const __m512i even = token < count ? _mm512_loadu_si512(rows + token * D_) : zero;
        const __m512i odd = token + 1 < count ? _mm512_loadu_si512(rows + (token + 1) * D_) : zero;
        _mm512_storeu_si512(low, _mm512_unpacklo_epi16(even, odd));
        _mm512_storeu_si512(high, _mm512_unpackhi_epi16(even, odd));
      }
    }
  }

  int64_t D_, steps_;
  float scale_ = 1.0f;
  BFloat16* queries_;  // [chunks][steps][16 pairs][16 rows][2]
  BFloat16* partial_;  // [2][16, D] tokens of a segment that is not full
  float* tiles_;       // [2][4][16 tokens][16 rows]
  BFloat16* weights_;  // [kRows, kWeightStride]
  char* values_;       // [4 tiles][16][64]
  char* open_values_;  // [passes][columns / 32][4 tiles][16][64]; empty with one chunk of rows
  bool values_are_open_ = false;
  float* sums_;  // [4 tiles][16][16]
};

}  // namespace tokcore::cpu::TOKCORE_ISA
