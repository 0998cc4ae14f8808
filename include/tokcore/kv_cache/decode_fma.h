// Scores and weighted sums of a block by fp32 FMA, at every instruction-set level: keys and values become rows of fp32
// first, so that every kind of page takes the same path. At the level with tiles it serves fp32 and fp16 numbers.
#pragma once

#include "tokcore/cpu/row_softmax.h"
#include "tokcore/kv_cache/decode_blocks.h"
#include "tokcore/kv_cache/pages.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Floats between the rows of a score matrix: an odd number of lines, so that rows spread over all sets of a cache.
inline constexpr int64_t kScoreStride = kBlockTokens + 16;

template <class T>
class FmaAttention {
 public:
  static constexpr int64_t kRows = 16;  // queries at a time

  FmaAttention(const KvCacheParams& cache, int64_t padded_rows, Arena& arena)
      : cache_(cache), open_(cache, arena), queries_(arena.take<float>(padded_rows * cache.head_dim)) {}

  // rows [padded_rows, D], ready to be multiplied with the keys as they are stored.
  void set_queries(const float* rows, int64_t padded_rows, float scale) {
    for (int64_t i = 0; i < padded_rows * cache_.head_dim; ++i) queries_[i] = rows[i] * scale;
  }
  void begin(const Split& split) {
    head_ = split.head;
    tier_ = split.source == kRecent ? nullptr : &cache_.tiers[split.source == kHighPages ? kHighTier : kLowTier];
  }

  template <class Step>
  void score(const Block& block, int64_t first_row, int64_t num_rows, float* scores, Step&& step) {
    for (int64_t i = 0; i < block.num_segments; ++i) {
      const float* keys = open(block.segments[i], PageKind::kKeys);
      for (int64_t row = 0; row < num_rows; row += kQuad) {
        score_rows(keys, block.segments[i].count, queries_ + (first_row + row) * cache_.head_dim,
                   scores + row * kScoreStride + i * block.width);
      }
      step(PageKind::kKeys, i + 1, block.num_segments);
    }
  }

  float unit() const { return 1.0f; }  // of the scores
  float weigh(RowSoftmax& state, int64_t, float* scores, int64_t columns, float) const {
    return state.take(scores, columns);
  }

  // out [kRows, D] = out * shrink + weights * values.
  template <class Step>
  void accumulate(const Block& block, int64_t num_rows, const float* weights, const float* shrink, float* out,
                  Step&& step) {
    const int64_t D = cache_.head_dim;
    for (int64_t row = 0; row < num_rows; ++row) {
      if (shrink[row] == 1.0f) continue;
      for (int64_t d = 0; d < D; ++d) out[row * D + d] *= shrink[row];
    }
    for (int64_t i = 0; i < block.num_segments; ++i) {
      const float* values = open(block.segments[i], PageKind::kValues);
      for (int64_t row = 0; row < num_rows; row += kQuad) {
        add_rows(values, block.segments[i].count, weights + row * kScoreStride + i * block.width, out + row * D);
      }
      step(PageKind::kValues, i + 1, block.num_segments);
    }
  }

  // Output channels are in order already.
  void finish(const float* from, float* to) const {
    for (int64_t d = 0; d < cache_.head_dim; ++d) to[d] = from[d];
  }

 private:
  static constexpr int64_t kQuad = 4;  // rows that share a loaded vector

  const float* open(const Segment& segment, PageKind kind) {
    const bool keys = kind == PageKind::kKeys;
    if (tier_ != nullptr && tier_->keys.coded) {
      read_page<T>(cache_, keys ? tier_->keys : tier_->values, kind, segment.place / cache_.num_heads, head_, open_);
    } else {
      const T* from = reinterpret_cast<const T*>(keys ? segment.k : segment.v);
      load_row(from, segment.count * cache_.head_dim, open_.rows);
    }
    return open_.rows;
  }

  void score_rows(const float* keys, int64_t tokens, const float* queries, float* scores) const {
    const int64_t D = cache_.head_dim;
    for (int64_t token = 0; token < tokens; ++token) {
      Vec sums[kQuad];
      for (int64_t row = 0; row < kQuad; ++row) sums[row] = Vec(0.0f);
      for (int64_t d = 0; d < D; d += Vec::kLanes) {
        const Vec key = Vec::load(keys + token * D + d);
#pragma GCC unroll 4
        for (int64_t row = 0; row < kQuad; ++row) {
          sums[row] = fma(key, Vec::load(queries + row * D + d), sums[row]);
        }
      }
      for (int64_t row = 0; row < kQuad; ++row) scores[row * kScoreStride + token] = sum_of_lanes(sums[row]);
    }
  }

  void add_rows(const float* values, int64_t tokens, const float* weights, float* out) const {
    const int64_t D = cache_.head_dim;
    constexpr int64_t kWidth = 2 * Vec::kLanes;  // D is a multiple of 32
    for (int64_t d = 0; d < D; d += kWidth) {
      Vec sums[kQuad][2];
      for (int64_t row = 0; row < kQuad; ++row) {
        sums[row][0] = sums[row][1] = Vec(0.0f);  // a segment's sums apart: short sums round less
      }
      for (int64_t token = 0; token < tokens; ++token) {
        const Vec left = Vec::load(values + token * D + d), right = Vec::load(values + token * D + d + Vec::kLanes);
#pragma GCC unroll 4
        for (int64_t row = 0; row < kQuad; ++row) {
          const Vec weight(weights[row * kScoreStride + token]);
          sums[row][0] = fma(weight, left, sums[row][0]);
          sums[row][1] = fma(weight, right, sums[row][1]);
        }
      }
      for (int64_t row = 0; row < kQuad; ++row) {
        float* to = out + row * D + d;
        (Vec::load(to) + sums[row][0]).store(to);
        (Vec::load(to + Vec::kLanes) + sums[row][1]).store(to + Vec::kLanes);
      }
    }
  }

  const KvCacheParams& cache_;
  OpenPage open_;
  float* queries_;  // [padded_rows, D]
  const KvTier* tier_ = nullptr;
  int64_t head_ = 0;
};

}  // namespace tokcore::cpu::TOKCORE_ISA
