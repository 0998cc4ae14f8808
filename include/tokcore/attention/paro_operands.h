// The two products of PARO attention on the CPU: scores of a tile of 64 keys by 32 queries, and a span's weights times
// values. 4-bit codes are computed as bytes, fp8 as bf16, all of them in fp32 where a level has no tiles for it.
#pragma once

#include "tokcore/attention/float_softmax.h"
#include "tokcore/attention/paro_codes.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Codes of 8 or 4 bits, sums in int32.
class ByteScores {
 public:
  static constexpr float kBias = kScoreBias;
  using Key = int8_t;
  using Query = int8_t;
  using Rows = const int8_t*;  // [P][Dq]

  explicit ByteScores(const ParoAttentionParams& params) : params_(params), width_(params.shape.code_dim()) {}

  // 4-bit keys are unpacked once for all query blocks.
  int64_t key_elements() const { return params_.qk == ParoFormat::kInt4 ? params_.shape.padded_length() * width_ : 0; }
  Rows rows_of(int64_t pair, Key* copies) const {
    if (params_.qk == ParoFormat::kInt4) return copies;
    return static_cast<const int8_t*>(params_.k_codes) + pair * params_.shape.padded_length() * width_;
  }
  void pack_keys(Rows, int64_t pair, int64_t tile, Key* copies) const {
    if (params_.qk != ParoFormat::kInt4) return;
    const int64_t first = tile * kTileKeys, bytes = width_ / 2;
    const uint8_t* from =
        static_cast<const uint8_t*>(params_.k_codes) + (pair * params_.shape.padded_length() + first) * bytes;
    for (int64_t i = 0; i < kTileKeys; ++i) unpack_int4(from + i * bytes, width_, copies + (first + i) * width_);
  }
  int64_t query_elements() const { return int8_panel_bytes(width_); }
  // Panel of 32 rows of queries from `first` of all heads on.
  void pack_queries(int64_t first, Query* panel) const {
    int8_t unpacked[kBlock][256];
    const int8_t* rows[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      if (params_.qk == ParoFormat::kInt4) {
        unpack_int4(static_cast<const uint8_t*>(params_.q_codes) + (first + i) * width_ / 2, width_, unpacked[i]);
        rows[i] = unpacked[i];
      } else {
        rows[i] = static_cast<const int8_t*>(params_.q_codes) + (first + i) * width_;
      }
    }
    pack_transposed_int8(rows, width_, panel);
  }
  // By how much a score of each query counts, without the keys' scale.
  void take_factors(int64_t first, float factor, float* factors) const {
    for (int64_t i = 0; i < kBlock; ++i) factors[i] = params_.q_scale[first + i] * factor;
  }
  // Scores beyond +-2^30 steps are out of reach: they would be 4 million powers of 2 from one another.
  void scale_factors(const float* factors, int64_t pair, int64_t tile, float* scaled) const {
    const float scale = params_.k_scale[pair * (params_.shape.padded_length() / kParoGroup) + tile];
    for (int i = 0; i < kBlock; ++i) {
      const float factor = factors[i] * scale;
      scaled[i] = factor > 256.0f ? 256.0f : factor;
    }
  }
  void multiply(Rows rows, int64_t tile, const Query* panel, float* scores) const {
    const StepList steps = {nullptr, 0, static_cast<int>(width_ / kInt8Step)};
    for (int half = 0; half < 2; ++half) {
      const int8_t* first = rows + (tile * kTileKeys + half * kBlock) * width_;
      multiply_bytes<false, true>({first, width_, kInt8Step}, reinterpret_cast<const uint8_t*>(panel), steps,
                                  reinterpret_cast<int32_t*>(scores) + half * kBlock * kScoreStride, kScoreStride);
    }
  }

 private:
  const ParoAttentionParams& params_;
  int64_t width_;  // Dq
};

// bf16, sums in fp32.
class FloatScores {
 public:
  using Engine = typename EngineOf<BFloat16>::type;
  static constexpr float kBias = 0.0f;
  using Key = typename Engine::Operand;
  using Query = typename Engine::Operand;
  using Rows = RowTiles<Engine, BFloat16>;

  explicit FloatScores(const ParoAttentionParams& params)
      : params_(params),
        width_(params.shape.code_dim()),
        used_(params.shape.value_dim()),
        in_place_(Rows::can_read_in_place({params.k_codes, 0, 0, width_}, used_)) {}

  int64_t key_elements() const { return Rows::elements(params_.shape.padded_length(), used_, in_place_); }
  Rows rows_of(int64_t pair, Key* copies) const {
    const BFloat16* codes = static_cast<const BFloat16*>(params_.k_codes);
    return {{codes + pair * params_.shape.padded_length() * width_, width_, params_.shape.padded_length(), used_},
            in_place_,
            copies};
  }
  void pack_keys(const Rows& rows, int64_t, int64_t tile, Key*) const {
    rows.pack(2 * tile);
    rows.pack(2 * tile + 1);
  }
  int64_t query_elements() const { return kBlock * used_; }
  void pack_queries(int64_t first, Query* panel) const {
    const BFloat16* rows[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      rows[i] = static_cast<const BFloat16*>(params_.q_codes) + (first + i) * width_;
    }
    Engine::pack_transposed(rows, used_, panel);
  }
  void take_factors(int64_t, float factor, float* factors) const {
    for (int i = 0; i < kBlock; ++i) factors[i] = factor;
  }
  void scale_factors(const float* factors, int64_t, int64_t, float* scaled) const {
    for (int i = 0; i < kBlock; ++i) scaled[i] = factors[i];
  }
  void multiply(const Rows& rows, int64_t tile, const Query* panel, float* scores) const {
    const StepList steps = {nullptr, 0, static_cast<int>(used_ / kBlock)};
    for (int half = 0; half < 2; ++half) {
      Engine::multiply(rows[2 * tile + half], panel, steps, false, scores + half * kBlock * kScoreStride, NoStep(),
                       kScoreStride);
    }
  }

 private:
  const ParoAttentionParams& params_;
  int64_t width_, used_;  // Dq, Dv
  bool in_place_;
};

// The kept tiles of a span.
struct SpanTiles {
  const int32_t* tiles;
  int count;
};

// 8- and 4-bit codes times weights in 8 bits, sums in int32.
class ByteValues {
 public:
  using Softmax = ByteSoftmax;
  using Value = int8_t;

  explicit ByteValues(const ParoAttentionParams& params) : params_(params), width_(params.shape.value_dim()) {}

  int64_t elements() const { return params_.pv == ParoFormat::kInt4 ? params_.shape.padded_length() * width_ : 0; }
  const Value* tiles_of(int64_t pair, const Value* copies) const {
    if (params_.pv == ParoFormat::kInt4) return copies;
    return static_cast<const int8_t*>(params_.v_codes) + pair * params_.shape.padded_length() * width_;
  }
  void pack(int64_t pair, int64_t tile, Value* copies) const {
    if (params_.pv != ParoFormat::kInt4) return;
    constexpr int64_t kHalf = kTileKeys / 2;
    const int64_t first = tile * width_ * kTileKeys;
    const uint8_t* from =
        static_cast<const uint8_t*>(params_.v_codes) + (pair * params_.shape.padded_length() * width_ + first) / 2;
    for (int64_t d = 0; d < width_; ++d) unpack_int4(from + d * kHalf, kTileKeys, copies + first + d * kTileKeys);
  }
  using Product = int32_t;
  // A span's weights times 32 of D: [32 of D][32 queries], to be merged later.
  void multiply(const Value* tiles, int64_t chunk, SpanTiles span, const uint8_t* weights, const SpanState&, bool,
                Product* to, float*) const {
    multiply_bytes<true, false>({tiles + chunk * kBlock * kTileKeys, kTileKeys, width_ * kTileKeys}, weights,
                                {span.tiles, 0, span.count, true}, to);
  }
  static void merge(const Product* products, const SpanState& state, bool is_first, float* sums) {
    for (int c = 0; c < kBlock; c += Vec::kLanes) {
      const Vec grow = Vec::load(state.grow + c), shrink = Vec::load(state.shrink + c);
      if (is_first) {
        for (int64_t i = c; i < kTileCells; i += kBlock) (to_floats(products + i) * grow).store(sums + i);
      } else {
#pragma GCC unroll 4
        for (int64_t i = c; i < kTileCells; i += kBlock) {
          fma(to_floats(products + i), grow, Vec::load(sums + i) * shrink).store(sums + i);
        }
      }
    }
  }

 private:
  static Vec to_floats(const Product* from) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(from));
#else
    float values[Vec::kLanes];
    for (int i = 0; i < Vec::kLanes; ++i) values[i] = static_cast<float>(from[i]);
    return Vec::load(values);
#endif
  }

  const ParoAttentionParams& params_;
  int64_t width_;  // Dv
};

// bf16 and fp8 values times weights in bf16, sums in fp32.
class FloatValues {
 public:
  using Engine = typename EngineOf<BFloat16>::type;
  using Softmax = FloatSoftmax<Engine>;
  using Value = typename Engine::Operand;

  explicit FloatValues(const ParoAttentionParams& params) : params_(params), width_(params.shape.value_dim()) {}

  int64_t elements() const { return params_.shape.padded_length() * width_; }
  const Value* tiles_of(int64_t, const Value* copies) const { return copies; }
  void pack(int64_t pair, int64_t tile, Value* copies) const {
    const ParoShape& shape = params_.shape;
    if (params_.pv == ParoFormat::kBf16) {
      const BFloat16* rows =
          static_cast<const BFloat16*>(params_.v_codes) + pair * shape.padded_length() * shape.code_dim();
      const TransposedTiles<Engine, BFloat16> tiles({rows, shape.code_dim(), shape.padded_length(), width_}, copies);
      tiles.pack(2 * tile);
      tiles.pack(2 * tile + 1);
      return;
    }
    const int64_t first = tile * width_ * kTileKeys;
    const uint8_t* from = static_cast<const uint8_t*>(params_.v_codes) + pair * shape.padded_length() * width_ + first;
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t d = 0; d < width_; ++d) {
        float values[kBlock];
        for (int i = 0; i < kBlock; ++i) values[i] = from_e4m3(from[d * kTileKeys + half * kBlock + i]);
        Engine::store_row(values, copies + first + (half * width_ + d) * kBlock);
      }
    }
  }
  using Product = float;
  // Sums in fp32 take in the product at once.
  void multiply(const Value* tiles, int64_t chunk, SpanTiles span, const Value* weights, const SpanState& state,
                bool is_first, Product*, float* sums) const {
    int32_t halves[2 * kSpanTiles];
    for (int i = 0; i < 2 * span.count; ++i) halves[i] = 2 * span.tiles[i / 2] + i % 2;
    if (!is_first) {
      for (int row = 0; row < kBlock; ++row) {
        for (int c = 0; c < kBlock; ++c) sums[row * kBlock + c] *= state.shrink[c];
      }
    }
    Engine::multiply({tiles + chunk * kTileCells, kBlock, width_ * kBlock}, weights, {halves, 0, 2 * span.count, true},
                     !is_first, sums, NoStep());
  }

  static void merge(const Product*, const SpanState&, bool, float*) {}

 private:
  const ParoAttentionParams& params_;
  int64_t width_;  // Dv
};

}  // namespace tokcore::cpu::TOKCORE_ISA
