// Tokens as numbers: rows of 16-bit elements, which matrix products take as they are, or of fp32, where codes too
// become rows of fp32 first.
#pragma once

#include "kv_cache/decode_block_sm80.cuh"

namespace tokcore::kv_cache {

template <class T, int kStrips>
class NumberEngine {
 public:
  static constexpr int kUnits = kTokenUnits<kStrips>;
  static constexpr bool kWide = sizeof(T) == 4;
  static constexpr int kStepChannels = kWide ? 8 : 16;
  static constexpr int kWeightBytes = sizeof(T);
  static constexpr int kWeightPadding = kWide ? 16 : 32;
  using Mma = cuda::MmaSm80<T>;

  TOKCORE_DEVICE explicit NumberEngine(const DecodeBlock& block)
      : b_(block),
        queries_{block.part<T>(block.work.shared.queries), block.head_dim / kStepChannels},
        row_bytes_(block.head_dim * static_cast<int>(sizeof(T))),
        row_stride_(row_bytes_ + 16) {}  // rows begin in different banks

  // ---- copies
  // --------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE void load(int piece) const {
    if (piece / 2 >= b_.num_tiles()) return;
    unsigned char* stage = b_.stage(piece);
    const int first = piece / 2 * b_.tile;
    const bool keys = piece % 2 == 0;
    if constexpr (kWide) {
      if (b_.split.coded) return dequantize(stage, first, keys);
    }
    const int chunks = row_bytes_ / 16, thread = static_cast<int>(threadIdx.x);
    const int rows_at_once = kDecodeThreads / chunks, chunk = thread % chunks;
#pragma unroll 1
    for (int row = thread / chunks; row < b_.tile && thread < rows_at_once * chunks; row += rows_at_once) {
      const unsigned char* from = b_.split.row_of(b_.cache, keys, first + row, row_bytes_);
      b_.copy_chunk(stage + row * row_stride_ + chunk * 16, from == nullptr ? nullptr : from + chunk * 16);
    }
  }

  // ---- queries
  // -------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE void set_queries() const {
    b_.template set_queries<16 * kStrips, T>(
        b_.split.coded, [](float) { return 1.0f; },
        [&](int row, int channel, float x) {
          const int k = channel % kStepChannels, step = channel / kStepChannels, upper = row % 16 / 8;
          if constexpr (kWide) {
            queries_.at(row / 16, step, row % 8 * 4 + k % 4, upper + 2 * (k / 4)) = x;
          } else {
            queries_.at(row / 16, step, row % 8 * 4 + k % 8 / 2, (upper + 2 * (k / 8)) * 2 + k % 2) =
                cuda::from_float<T>(x);
          }
        });
  }

  // ---- scores
  // --------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE void score(int piece, ScoreFragment<kStrips>& scores) const {
    const unsigned char* stage = b_.stage(piece);
#pragma unroll
    for (int i = 0; i < kStrips * kUnits * 8; ++i) {
      scores[i / (kUnits * 8)][i / 8 % kUnits][i / 4 % 2][i % 4] = 0.0f;
    }
#pragma unroll 1
    for (int step = 0; step < queries_.steps; ++step) {
      typename Mma::PreparedA a[kStrips];
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) a[strip] = Mma::prepare_a(queries_.operand(strip, step, b_.lane));
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const int token = (b_.warp + unit * kDecodeWarps) * 16;
        if (token >= b_.tile) break;
        cuda::FragmentB keys[2];
        read_keys(stage, token, step, keys);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const typename Mma::PreparedB b = Mma::prepare_b(keys[half]);
#pragma unroll
          for (int strip = 0; strip < kStrips; ++strip) Mma::multiply(scores[strip][unit][half], a[strip], b);
        }
      }
    }
    const float* units = b_.template part<float>(b_.work.shared.units);
#pragma unroll
    for (int slot = 0; slot < 2 * kStrips; ++slot) {
      const float factor = units[row_of(slot)];
#pragma unroll
      for (int i = 0; i < kUnits * 4; ++i) scores[slot / 2][i / 4][i / 2 % 2][slot % 2 * 2 + i % 2] *= factor;
    }
  }
  TOKCORE_DEVICE int token_of(int unit, int half, int odd) const {
    return (b_.warp + unit * kDecodeWarps) * 16 + half * 8 + b_.within * 2 + odd;
  }

  // ---- weights
  // -------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE int find_exponent(int) const { return 0; }
  TOKCORE_DEVICE float unit_of(int) const { return 1.0f; }

  TOKCORE_DEVICE void put_weights(int, int, const float (&)[2 * kStrips], const ScoreFragment<kStrips>& p) const {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int token = (b_.warp + unit * kDecodeWarps) * 16;
      if (token >= b_.tile) break;
#pragma unroll
      for (int slot = 0; slot < 2 * kStrips; ++slot) {
        const auto pair = [&](int half) {
          return cuda::from_floats<T>(p[slot / 2][unit][half][slot % 2 * 2], p[slot / 2][unit][half][slot % 2 * 2 + 1]);
        };
        using Pair = cuda::ElementPair<T>;
        unsigned char* to = weight_row(slot) + token * kWeightBytes;
        if constexpr (kWide) {  // in order of tokens
          *reinterpret_cast<Pair*>(to + b_.within * 8) = pair(0);
          *reinterpret_cast<Pair*>(to + 32 + b_.within * 8) = pair(1);
        } else {  // as a lane reads them: both halves of its operand side by side
          *reinterpret_cast<Pair*>(to + b_.within * 8) = pair(0);
          *reinterpret_cast<Pair*>(to + b_.within * 8 + 4) = pair(1);
        }
      }
    }
  }

  // ---- outputs
  // -------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE void accumulate(int piece, OutFragment<kStrips>& out) const {
    const unsigned char* stage = b_.stage(piece);
#pragma unroll 1
    for (int token = 0; token < b_.tile; token += kStepChannels) {
      typename Mma::PreparedA a[kStrips];
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) a[strip] = Mma::prepare_a(read_weights(strip, token));
#pragma unroll
      for (int unit = 0; unit < kChannelUnits; ++unit) {
        const int channel = (b_.warp + unit * kDecodeWarps) * 16;
        if (channel >= b_.head_dim) break;
        cuda::FragmentB values[2];
        read_values(stage, token, channel, values);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const typename Mma::PreparedB b = Mma::prepare_b(values[half]);
#pragma unroll
          for (int strip = 0; strip < kStrips; ++strip) Mma::multiply(out[strip][unit][half], a[strip], b);
        }
      }
    }
  }
  // Values that are not finite reach the rows that weigh them alone, not those that do not see them: they are added by
  // hand and taken out of the tile. All threads of the block.
  TOKCORE_DEVICE void set_aside(int piece, OutFragment<kStrips>& out) const {
    unsigned char* stage = b_.stage(piece);
    const int numbers = b_.tile * b_.head_dim;
    const auto number = [&](int token, int channel) -> T& {
      return reinterpret_cast<T*>(stage + token * row_stride_)[channel];
    };
    bool found = false;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < numbers; i += kDecodeThreads) {
      found = found || !cuda::is_finite(cuda::to_float(number(i / b_.head_dim, i % b_.head_dim)));
    }
    if (__syncthreads_or(found) == 0) return;
#pragma unroll
    for (int i = 0; i < kChannelUnits * 4; ++i) {
      const int channel = (b_.warp + i / 4 * kDecodeWarps) * 16 + channel_of(i / 2 % 2, i % 2);
#pragma unroll 1
      for (int token = 0; token < b_.tile && channel < b_.head_dim; ++token) {
        const float value = cuda::to_float(number(token, channel));
        if (cuda::is_finite(value)) continue;
#pragma unroll
        for (int slot = 0; slot < 2 * kStrips; ++slot) {
          const float weight = cuda::to_float(*weight_of(slot, token));
          if (weight != 0.0f) out[slot / 2][i / 4][i / 2 % 2][slot % 2 * 2 + i % 2] += weight * value;
        }
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < numbers; i += kDecodeThreads) {
      T& value = number(i / b_.head_dim, i % b_.head_dim);
      if (!cuda::is_finite(cuda::to_float(value))) value = T{};
    }
    __syncthreads();
  }
  TOKCORE_DEVICE int channel_of(int half, int odd) const { return half * 8 + b_.within * 2 + odd; }
  TOKCORE_DEVICE float zero_of(int, int) const { return 0.0f; }
  TOKCORE_DEVICE void clear_zeros() const {}

 private:
  TOKCORE_DEVICE int row_of(int slot) const { return slot / 2 * 16 + slot % 2 * 8 + b_.quad; }
  TOKCORE_DEVICE unsigned char* weight_row(int slot) const {
    return b_.shared + b_.work.shared.weights + row_of(slot) * (b_.tile * kWeightBytes + kWeightPadding);
  }
  TOKCORE_DEVICE const T* weight_of(int slot, int token) const {
    const T* row = reinterpret_cast<const T*>(weight_row(slot));
    return row + (kWide ? token : token / 16 * 16 + token % 8 / 2 * 4 + token % 16 / 8 * 2 + token % 2);
  }
  TOKCORE_DEVICE cuda::FragmentA read_weights(int strip, int token) const {
    const unsigned char* upper = weight_row(2 * strip) + token * kWeightBytes;
    const unsigned char* lower = weight_row(2 * strip + 1) + token * kWeightBytes;
    if constexpr (kWide) {
      const auto word = [&](const unsigned char* row, int k) { return reinterpret_cast<const uint32_t*>(row)[k]; };
      return {{word(upper, b_.within), word(lower, b_.within), word(upper, b_.within + 4), word(lower, b_.within + 4)}};
    } else {
      const uint2 first = *reinterpret_cast<const uint2*>(upper + b_.within * 8);
      const uint2 second = *reinterpret_cast<const uint2*>(lower + b_.within * 8);
      return {{first.x, second.x, first.y, second.y}};
    }
  }

  // Tokens `token` to `token` + 15 at a step of channels, as two operands of eight columns.
  TOKCORE_DEVICE void read_keys(const unsigned char* stage, int token, int step, cuda::FragmentB (&keys)[2]) const {
    if constexpr (kWide) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t* row = reinterpret_cast<const uint32_t*>(stage + (token + half * 8 + b_.quad) * row_stride_) +
                              step * kStepChannels + b_.within;
        keys[half] = {{row[0], row[4]}};
      }
    } else {
      const int row = token + b_.lane / 16 * 8 + b_.lane % 8, chunk = step * 2 + b_.lane / 8 % 2;
      const auto& source = *reinterpret_cast<const cute::uint128_t*>(stage + row * row_stride_ + chunk * 16);
      cute::SM75_U32x4_LDSM_N::copy(source, keys[0].x[0], keys[0].x[1], keys[1].x[0], keys[1].x[1]);
    }
  }
  // Channels `channel` to `channel` + 15 of a step of tokens.
  TOKCORE_DEVICE void read_values(const unsigned char* stage, int token, int channel,
                                  cuda::FragmentB (&values)[2]) const {
    if constexpr (kWide) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const unsigned char* row = stage + (token + b_.within + 4 * i) * row_stride_;
          values[half].x[i] = reinterpret_cast<const uint32_t*>(row)[channel + half * 8 + b_.quad];
        }
      }
    } else {
      const int row = token + b_.lane / 8 % 2 * 8 + b_.lane % 8, chunk = channel / 8 + b_.lane / 16;
      const auto& source = *reinterpret_cast<const cute::uint128_t*>(stage + row * row_stride_ + chunk * 16);
      cute::SM75_U16x8_LDSM_T::copy(source, values[0].x[0], values[0].x[1], values[1].x[0], values[1].x[1]);
    }
  }

  // Rows of fp32 from pages of codes; zeros where there is no token.
  TOKCORE_DEVICE void dequantize(unsigned char* stage, int first, bool keys) const {
    const KvTier& tier = b_.cache.tiers[b_.split.source];
    const KvPages& pages = keys ? tier.keys : tier.values;
    const QuantScheme& scheme = pages.scheme;
    const int page_size = static_cast<int>(b_.cache.page_size), group = static_cast<int>(scheme.group);
#pragma unroll 1
    for (int row = b_.warp; row < b_.tile; row += kDecodeWarps) {
      float* to = reinterpret_cast<float*>(stage + row * row_stride_);
      const bool present = first + row < b_.split.count;
      const int64_t slot = present ? b_.split.slot_of(b_.cache, tier, first + row) : -1;
      const int64_t head = slot >> b_.split.page_shift;
      const int token = static_cast<int>(slot & (page_size - 1));
#pragma unroll 1
      for (int i = b_.lane; i < b_.head_dim; i += 32) {
        float value = 0.0f;
        if (slot >= 0) {
          const CodePlace place = keys ? place_in_key_page(token, i, b_.head_dim, scheme.bits)
                                       : place_in_value_page(token, i, page_size, scheme.bits);
          const uint32_t code = pages.data[head * pages.head_bytes + place.byte] >> place.shift & top_code(scheme.bits);
          const bool by_token = scheme.axis == QuantAxis::kToken;
          const int64_t at =
              head * pages.head_scales + (by_token ? i / group * page_size + token : token / group * b_.head_dim + i);
          const float zero = pages.zero == nullptr ? 0.0f : cuda::to_float(pages.zero[at]);
          value = cuda::value_of_code(code, cuda::to_float(pages.scale[at]), zero, cuda::origin_of(scheme));
        }
        to[i] = value;
      }
    }
  }

  const DecodeBlock& b_;
  QueryFragments<T, 16 / sizeof(T)> queries_;
  int row_bytes_, row_stride_;
};

}  // namespace tokcore::kv_cache
