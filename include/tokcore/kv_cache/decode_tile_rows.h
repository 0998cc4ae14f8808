// A block of bf16 rows attended by many queries.
//
// Keys and values are made second operands once for all rows. Rows are taken in chunks of 32, two by two tiles. While
// the tiles make the scores of one pair of segments, the vector units make weights of those of the pair before, which
// are still in the nearest cache.
#pragma once

#include "tokcore/kv_cache/decode_weights.h"

namespace tokcore::cpu::TOKCORE_ISA {

class TileRows {
 public:
  static constexpr int64_t kRows = 32;

  // most_rows: a multiple of kRows; 0: is not used.
  TileRows(int64_t head_dim, int64_t most_rows, Arena& arena)
      : D_(head_dim),
        steps_(head_dim / 32),
        queries_(arena.take<BFloat16>(most_rows * head_dim)),
        keys_(arena.take<char>(most_rows > 0 ? kBlockTokens * head_dim * 2 : 0)),
        values_(arena.take<char>(most_rows > 0 ? kBlockTokens * head_dim * 2 : 0)),
        tiles_(arena.take<float>(most_rows > 0 ? kRows * kTileStride : 0)),
        scores_(arena.take<float>(most_rows > 0 ? kRows * kScoreStride : 0)),
        weights_(arena.take<BFloat16>(most_rows > 0 ? kRows * kWeightStride : 0)),
        sums_(arena.take<float>(most_rows > 0 ? 2 * 4 * 256 : 0)) {}

  void set_queries(const float* rows, int64_t num_rows, Vec sign) {
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t step = 0; step < steps_; ++step) {
        BFloat16* to = queries_ + (row / 16 * steps_ + step) * 512 + row % 16 * 32;
        for (int64_t i = 0; i < 32; i += 16) (Vec::load(rows + row * D_ + step * 32 + i) * sign).store(to + i);
      }
    }
  }

  // states [num_rows], out [num_rows, D]. Scores are worth `unit`. adjust(scores, row) is called for each row if
  // `adjusts`; step(done, total) as the work proceeds.
  template <class Adjust, class Step>
  void attend(const Block& block, int64_t num_rows, float unit, RowSoftmax* states, float* out, bool adjusts,
              Adjust&& adjust, Step&& step) {
    const int64_t pairs = ceil_div(block.num_segments, 2), num_chunks = ceil_div(num_rows, kRows);
    // In steps of a pair and 32 channels. A pair takes as long to open as two of them per 32 channels.
    const int64_t total = 2 * pairs * steps_ * (1 + num_chunks);
    int64_t done = 0;
    const auto advance = [&](int64_t count) { step(done += count, total); };
    open(block, advance);
    for (int64_t first = 0; first < num_rows; first += kRows) {
      const int64_t rows = min(num_rows - first, kRows);
      RowSoftmax* chunk = states + first;
      if (adjusts) {
        score_all(block, first);
        for (int64_t row = 0; row < rows; ++row) {
          float* scores = scores_ + row * kScoreStride;
          adjust(scores, first + row);
          shrink_[row] = WeighRow::take(chunk[row], scores, block.columns(), unit, weights_ + row * kWeightStride);
        }
        advance(pairs * steps_);
      } else {
        weigh(block, first, rows, unit, chunk, advance);
      }
      accumulate(pairs, rows, out + first * D_, advance);
    }
  }

 private:
  static constexpr int64_t kWeightStride = kBlockTokens + 32;  // an odd number of lines
  // Two tiles side by side: a load waits for an earlier store with the same low 12 address bits, and the stores of a
  // dense 32 x 32 tile have all of them.
  static constexpr int64_t kTileStride = 2 * 32;

  // Keys: [segments][steps] tiles of 16 pairs of channels by 16 tokens. Values: [D / 32][pairs of segments] two tiles.
  template <class Step>
  void open(const Block& block, Step&& step) {
    const int64_t pairs = ceil_div(block.num_segments, 2);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      for (int64_t segment = 2 * pair; segment < 2 * pair + 2; ++segment) open_keys(block, segment);
      for (int64_t pass = 0; pass < steps_; ++pass) {
        interleave_values(block, 2 * pair, pass * 32, D_, values_ + (pass * pairs + pair) * 2048);
      }
      step(2 * steps_);
    }
  }
  void open_keys(const Block& block, int64_t segment) {
    const bool present = segment < block.num_segments;
    const int64_t count = present ? block.segments[segment].count : 0;
    const BFloat16* rows = present ? reinterpret_cast<const BFloat16*>(block.segments[segment].k) : nullptr;
    for (int64_t step = 0; step < steps_; ++step) {
      __m512i tile[16];
      for (int64_t i = 0; i < 16; ++i) {
        tile[i] = i < count ? _mm512_loadu_si512(rows + i * D_ + step * 32) : _mm512_setzero_si512();
      }
      transpose_16x16_dwords(tile);
      char* to = keys_ + (segment * steps_ + step) * 1024;
      for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 64, tile[i]);
    }
  }

  // Scores of a pair of segments [kRows][stride]; beside(s) is called after every step of 32 channels.
  template <class Beside>
  void score_pair(int64_t pair, int64_t first_row, float* to, int64_t stride, Beside&& beside) {
    const BFloat16* upper = queries_ + first_row * D_;
    const BFloat16* lower = upper + 16 * D_;
    const char* keys = keys_ + pair * 2 * steps_ * 1024;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps_; ++s) {
      _tile_loadd(4, upper + s * 512, 64);
      _tile_loadd(6, keys + s * 1024, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, keys + (steps_ + s) * 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, lower + s * 512, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      beside(s);
    }
    _tile_stored(0, to, stride * 4);
    _tile_stored(1, to + 16, stride * 4);
    _tile_stored(2, to + 16 * stride, stride * 4);
    _tile_stored(3, to + 16 * stride + 16, stride * 4);
    asm volatile("" ::: "memory");
  }

  void score_all(const Block& block, int64_t first_row) {
    asm volatile("" ::: "memory");
    for (int64_t pair = 0; 2 * pair < block.num_segments; ++pair) {
      score_pair(pair, first_row, scores_ + pair * 32, kScoreStride, [](int64_t) {});
    }
  }

  // Weights of a chunk, as WeighRow::take makes them.
  template <class Advance>
  void weigh(const Block& block, int64_t first_row, int64_t num_rows, float unit, RowSoftmax* states,
             Advance&& advance) {
    const int64_t pairs = ceil_div(block.num_segments, 2);
    const bool odd = block.num_segments % 2 != 0;
    const Vec factor(unit * kLog2E);
    float shifts[kRows];
    Vec sums[kRows];
    const auto weigh_pair = [&](int64_t pair, int64_t begin, int64_t end) {
      const float* scores = tiles_ + pair % 2 * 32;
      BFloat16* weights = weights_ + pair * 32;
      const bool half = odd && pair + 1 == pairs;
      int64_t row = begin;
      for (; !half && row + 2 <= end; row += 2) {
        const float* cells = scores + row * kTileStride;
        const Vec upper(shifts[row]), lower(shifts[row + 1]);
        Vec weight[4] = {fma(Vec::load(cells), factor, upper), fma(Vec::load(cells + 16), factor, upper),
                         fma(Vec::load(cells + kTileStride), factor, lower),
                         fma(Vec::load(cells + kTileStride + 16), factor, lower)};
        exp2<true>(weight);
        store_weight_pair(weight[0], weight[1], weights + row * kWeightStride);
        store_weight_pair(weight[2], weight[3], weights + (row + 1) * kWeightStride);
        sums[row] += weight[0] + weight[1];
        sums[row + 1] += weight[2] + weight[3];
      }
      for (; row < end; ++row) {
        const float* cells = scores + row * kTileStride;
        const WeighRow one(factor, Vec(shifts[row]));
        BFloat16* to = weights + row * kWeightStride;
        sums[row] += half ? one.weigh_last(cells, to) : one.weigh(cells, to);
      }
    };
    asm volatile("" ::: "memory");
    for (int64_t pair = 0; pair < pairs; ++pair) {
      score_pair(pair, first_row, tiles_ + pair % 2 * 32, kTileStride, [&](int64_t s) {
        if (pair > 0) weigh_pair(pair - 1, num_rows * s / steps_, num_rows * (s + 1) / steps_);
      });
      advance(steps_);
      if (pair > 0) continue;
      for (int64_t row = 0; row < num_rows; ++row) {
        shrink_[row] = 1.0f;
        if (!WeighRow::has_maximum(states[row])) {
          const int64_t columns = min(block.columns(), int64_t{WeighRow::kGuessed});
          shrink_[row] = WeighRow::guess(states[row], tiles_ + row * kTileStride, columns, unit);
        }
        shifts[row] = -states[row].maximum * kLog2E;
        sums[row] = Vec(0.0f);
      }
    }
    weigh_pair(pairs - 1, 0, num_rows);
    bool scored = false;
    for (int64_t row = 0; row < num_rows; ++row) {
      const float sum = sum_of_lanes(sums[row]);
      if (sum < WeighRow::kMostSum) {
        states[row].sum = states[row].sum * shrink_[row] + sum;
        continue;
      }
      if (!scored) score_all(block, first_row);
      scored = true;
      shrink_[row] *= WeighRow::retake(states[row], scores_ + row * kScoreStride, block.columns(), unit,
                                       weights_ + row * kWeightStride);
    }
  }

  // Sums are added to the output while the next ones are made.
  template <class Advance>
  void accumulate(int64_t pairs, int64_t num_rows, float* out, Advance&& advance) {
    const BFloat16* lower = weights_ + 16 * kWeightStride;
    const auto add = [&](int64_t pass) {
      const float* sums = sums_ + pass % 2 * 1024;
      add_tile_sums(sums, 2, min(num_rows, 16), shrink_, D_, out + pass * 32);
      if (num_rows > 16) add_tile_sums(sums + 512, 2, num_rows - 16, shrink_ + 16, D_, out + 16 * D_ + pass * 32);
    };
    const char* values = values_;
    for (int64_t pass = 0; pass < steps_; ++pass) {
      asm volatile("" ::: "memory");
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t pair = 0; pair < pairs; ++pair, values += 2048) {
        _tile_loadd(4, weights_ + pair * 32, kWeightStride * 2);
        _tile_loadd(6, values, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, values + 1024, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, lower + pair * 32, kWeightStride * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        if (pair == 0 && pass > 0) add(pass - 1);
      }
      advance(pairs);
      float* sums = sums_ + pass % 2 * 1024;
      _tile_stored(0, sums, 64);
      _tile_stored(1, sums + 256, 64);
      _tile_stored(2, sums + 512, 64);
      _tile_stored(3, sums + 768, 64);
      asm volatile("" ::: "memory");
    }
    add(steps_ - 1);
  }

  int64_t D_, steps_;
  BFloat16* queries_;  // [rows / 16][steps][16 rows][32]
  char* keys_;
  char* values_;
  float* tiles_;       // [kRows, kTileStride] scores of two pairs of segments
  float* scores_;      // [kRows, kScoreStride] of a whole block, where they are looked at twice
  BFloat16* weights_;  // [kRows, kWeightStride]
  float shrink_[kRows] = {};
  float* sums_;  // [2][4 tiles][16][16]
};

}  // namespace tokcore::cpu::TOKCORE_ISA
