// Tokens as codes, beside 16-bit queries: products in fp16 straight from the codes.
//
// Codes less their middle are exact in fp16. Queries and weights are brought to a range where fp16 keeps eleven bits of
// all that matters, by powers of two. A token's scale multiplies its score, and with values its weight; zeros join in
// fp32. Keys that share scales by channel are made whole in registers; values that do are summed a group of tokens at a
// time, and the sums are scaled.
#pragma once

#include "kv_cache/decode_block_sm80.cuh"

namespace tokcore::kv_cache {

// Four neighbouring bfloat16 numbers.
struct ScaleQuad {
  float x[4];
  TOKCORE_DEVICE explicit ScaleQuad(const BFloat16* from) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    x[0] = __uint_as_float(words.x << 16);
    x[1] = __uint_as_float(words.x & 0xffff0000u);
    x[2] = __uint_as_float(words.y << 16);
    x[3] = __uint_as_float(words.y & 0xffff0000u);
  }
};

template <class T, int kStrips>
class CodeEngine {
 public:
  static constexpr int kUnits = kTokenUnits<kStrips>;
  static constexpr int kWeightBytes = 2;
  static constexpr int kWeightPadding = 32;
  using Mma = cuda::MmaSm80<Float16>;

  TOKCORE_DEVICE explicit CodeEngine(const DecodeBlock& block)
      : b_(block),
        tier_(block.cache.tiers[block.split.source]),
        queries_{block.part<uint16_t>(block.work.shared.queries), block.head_dim / 16},
        k_(tier_.keys.scheme),
        v_(tier_.values.scheme),
        page_(static_cast<int>(block.cache.page_size)),
        key_groups_(k_.axis == QuantAxis::kToken ? block.head_dim / static_cast<int>(k_.group) : 1),
        value_groups_(static_cast<int>(groups_of(tier_.values, block.head_dim))),
        has_zeros_(v_.axis == QuantAxis::kToken && (!v_.symmetric || value_groups_ > 1)),
        has_rests_(queries_have_rests(block.cache)) {
    per_page_ = block.tile < page_ ? block.tile : page_;
    // Planes of tokens: the bytes of a page are taken whole.
    value_page_ = v_.bits < 8 ? page_ : per_page_;
    k_scale_ = block.tile * block.head_dim / codes_per_byte(k_.bits);
    const int key_scale_bytes =
        2 * (k_.axis == QuantAxis::kToken ? key_groups_ * block.tile : token_groups(k_) * block.head_dim);
    k_zero_ = k_scale_ + key_scale_bytes;
    if (v_.axis == QuantAxis::kToken) {  // behind the keys, as weights need them
      v_scale_ = k_zero_ + (k_.symmetric ? 0 : key_scale_bytes);
      v_zero_ = v_scale_ + 2 * value_groups_ * block.tile;
    } else {  // behind the values
      v_scale_ = (block.tile > value_page_ ? block.tile : value_page_) * block.head_dim / codes_per_byte(v_.bits);
      v_zero_ = v_scale_ + 2 * token_groups(v_) * block.head_dim;
    }
  }

  // ---- copies
  // --------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE void load(int piece) const {
    if (piece / 2 >= b_.num_tiles()) return;
    unsigned char* stage = b_.stage(piece);
    const int first = piece / 2 * b_.tile;
    piece % 2 == 0 ? load_keys(stage, first) : load_values(stage, first);
  }

  // ---- queries
  // -------------------------------------------------------------------------------------------------------

  // A word of codes holds channels 4 q to 4 q + 3; the first and third are one operand word, the others the other.
  TOKCORE_DEVICE void set_queries() const {
    b_.template set_queries<16 * kStrips, T>(
        true, [](float greatest) { return power_of_two(exponent_of(greatest) - 12); },
        [&](int row, int channel, float x) {
          const int lane = row % 8 * 4 + channel % 16 / 4, j = channel % 4;
          const int element = (row % 16 / 8 + 2 * (j & 1)) * 2 + j / 2;
          const Float16 rounded = cuda::from_float<Float16>(x);
          queries_.at(row / 16, channel / 16, lane, element) = rounded.bits;
          if (!has_rests_) return;
          const Float16 rest = cuda::from_float<Float16>(x - cuda::to_float(rounded));
          queries_.at(kStrips + row / 16, channel / 16, lane, element) = rest.bits;
        });
    if (k_.symmetric || k_.axis != QuantAxis::kToken) return;
    // Sums of the queries as rounded: what rounding loses then counts by the keys alone.
    __syncthreads();
    float* sums = b_.template part<float>(b_.work.shared.sums);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 16 * kStrips * key_groups_; i += kDecodeThreads) {
      const int row = i / key_groups_, group = i % key_groups_, size = static_cast<int>(k_.group);
      float sum = 0.0f;
#pragma unroll 1
      for (int channel = group * size; channel < (group + 1) * size; ++channel) {
        const int lane = row % 8 * 4 + channel % 16 / 4, j = channel % 4;
        const int element = (row % 16 / 8 + 2 * (j & 1)) * 2 + j / 2;
        sum += cuda::to_float(Float16{queries_.at(row / 16, channel / 16, lane, element)});
        if (has_rests_) sum += cuda::to_float(Float16{queries_.at(kStrips + row / 16, channel / 16, lane, element)});
      }
      sums[i] = sum;
    }
  }

  // ---- scores
  // --------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE void score(int piece, ScoreFragment<kStrips>& scores) const {
    const unsigned char* stage = b_.stage(piece);
    if (k_.axis == QuantAxis::kToken) {
      score_by_token(stage, scores);
    } else {
      score_by_channel(stage, scores);
    }
  }
  // Which token of the tile a score belongs to.
  TOKCORE_DEVICE int token_of(int unit, int half, int odd) const {
    return (b_.warp + unit * kDecodeWarps) * 16 + b_.within * 4 + half + 2 * odd;
  }

  // ---- weights
  // -------------------------------------------------------------------------------------------------------

  // The exponent of the greatest scale of the warp's values.
  TOKCORE_DEVICE int find_exponent(int piece) const {
    if (v_.axis == QuantAxis::kChannel) return 12;  // sums are scaled before they are added up
    const BFloat16* scales = reinterpret_cast<const BFloat16*>(b_.stage(piece) + v_scale_);
    const int token = (b_.warp + b_.lane / 16 * kDecodeWarps) * 16 + b_.lane % 16;
    float greatest = 0.0f;
    if (token < b_.tile) {
#pragma unroll 1
      for (int group = 0; group < value_groups_; ++group) {
        greatest = fmaxf(greatest, cuda::to_float(scales[group * b_.tile + token]));
      }
    }
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
      greatest = fmaxf(greatest, __shfl_xor_sync(cuda::kAllLanes, greatest, step));
    }
    return exponent_of(greatest);
  }
  // Weights and outputs count in units of 2^(exponent - 12), so that fp16 holds weights from 2^-26 of the greatest on.
  TOKCORE_DEVICE float unit_of(int exponent) const { return power_of_two(exponent - 12); }

  // Puts weights p, of which hidden tokens have 0, into shared memory, and adds up what the zeros of the values give.
  TOKCORE_DEVICE void put_weights(int piece, int exponent, const float (&shrink)[2 * kStrips],
                                  const ScoreFragment<kStrips>& p) const {
    if (v_.axis == QuantAxis::kChannel) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) put_unit(unit, p, [](int) { return kWeightUnit; });
      return;
    }
    const unsigned char* stage = b_.stage(piece);
    const float middle = static_cast<float>(middle_code(v_.bits));
    const float factor = power_of_two(12 - exponent);
    const int rows = 16 * kStrips;
    float* zeros = b_.template part<float>(b_.work.shared.zeros) + b_.warp * rows * value_groups_;
#pragma unroll 1
    for (int group = 0; group < value_groups_; ++group) {
      float sums[2 * kStrips] = {};
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const int token = token_of(unit, 0, 0);
        if (token >= b_.tile) continue;
        const int at = group * b_.tile + token;
        const ScaleQuad scale(reinterpret_cast<const BFloat16*>(stage + v_scale_) + at);
        if (has_zeros_) {
          const BFloat16* zeros_at =
              reinterpret_cast<const BFloat16*>(stage + (v_.symmetric ? v_scale_ : v_zero_)) + at;
          const ScaleQuad zero(zeros_at);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float offset = v_.symmetric ? zero.x[i] - zero.x[i] : fmaf(middle, scale.x[i], zero.x[i]);
#pragma unroll
            for (int slot = 0; slot < 2 * kStrips; ++slot) {
              const float weight = p[slot / 2][unit][i % 2][slot % 2 * 2 + i / 2];
              if (weight != 0.0f) sums[slot] = fmaf(weight, offset, sums[slot]);
            }
          }
        }
        if (value_groups_ > 1) {
          const float norm = power_of_two(-exponent);
          // A NaN reaches the rows that weigh it with the zeros, not those that do not see it.
          const auto scaled = [&](int i) { return scale.x[i] == scale.x[i] ? scale.x[i] * norm : 0.0f; };
          uint32_t* to = b_.template part<uint32_t>(b_.work.shared.scales) + at / 2;
          if (b_.quad == 0) {
            to[0] = cuda::ptx::pack_f16(scaled(0), scaled(2));
            to[1] = cuda::ptx::pack_f16(scaled(1), scaled(3));
          }
        }
        if (group > 0) continue;
        put_unit(unit, p, [&](int i) { return value_groups_ > 1 ? kWeightUnit : scale.x[i] * factor; });
      }
      if (!has_zeros_) continue;
#pragma unroll
      for (int slot = 0; slot < 2 * kStrips; ++slot) {
        const float sum = cuda::quad_sum(sums[slot]);
        float& total = zeros[row_of(slot) * value_groups_ + group];
        if (b_.within == 0) total = fmaf(total, shrink[slot], sum);
      }
    }
  }

  // ---- outputs
  // -------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE void accumulate(int piece, OutFragment<kStrips>& out) const {
    if (v_.axis == QuantAxis::kChannel) return accumulate_by_channel(piece, out);
    const unsigned char* stage = b_.stage(piece);
    const int first = piece / 2 * b_.tile;
    const int plane = value_page_ / codes_per_byte(v_.bits), words = plane / 4;
#pragma unroll 1
    for (int start = 0; start < b_.tile; start += per_page_) {
      // A page of 128 of which the tile is half: its second half begins at quad 16.
      const int offset = value_page_ > per_page_ ? (b_.split.first + first) & (page_ - 1) : 0;
      const int base = start / per_page_ * (b_.head_dim * plane / 16);
      cuda::QuadCursor cursor(offset / 4 + b_.within, words, v_.bits);
#pragma unroll 1
      for (int step = 0; step < per_page_ / 16; ++step, cursor.advance(4)) {
        const cuda::CodePlane codes(v_.bits, cursor.shift());
        cuda::FragmentA weights[kStrips];
        read_weights(start + step * 16, weights);
#pragma unroll
        for (int unit = 0; unit < kChannelUnits; ++unit) {
          const int channel = (b_.warp + unit * kDecodeWarps) * 16;
          if (channel >= b_.head_dim) break;
          const int chunk = base + channel / 16 * plane + cursor.word() * 4 + b_.quad / 2;
          const uint2 pair =
              *reinterpret_cast<const uint2*>(stage + cuda::swizzled_chunk(chunk) * 16 + b_.quad % 2 * 8);
          const cuda::FragmentB left = {{codes.even(pair.x), codes.odd(pair.x)}};
          const cuda::FragmentB right = {{codes.even(pair.y), codes.odd(pair.y)}};
          uint2 scales = make_uint2(0, 0);
          if (value_groups_ > 1) {
            const int at = channel / static_cast<int>(v_.group) * b_.tile + start + step * 16 + b_.within * 4;
            scales = *reinterpret_cast<const uint2*>(b_.template part<uint16_t>(b_.work.shared.scales) + at);
          }
#pragma unroll
          for (int strip = 0; strip < kStrips; ++strip) {
            cuda::FragmentA a = weights[strip];
            if (value_groups_ > 1) {
#pragma unroll
              for (int i = 0; i < 4; ++i) a.x[i] = cuda::ptx::mul_f16x2(a.x[i], i < 2 ? scales.x : scales.y);
            }
            Mma::multiply(out[strip][unit][0], a, left);
            Mma::multiply(out[strip][unit][1], a, right);
          }
        }
      }
    }
  }
  TOKCORE_DEVICE void set_aside(int, OutFragment<kStrips>&) const {}  // codes are finite, and scales join the weights
  // Which channel of its unit a sum belongs to.
  TOKCORE_DEVICE int channel_of(int half, int odd) const { return b_.within * 4 + half + 2 * odd; }
  // What the zeros of the values add to a channel of a row.
  TOKCORE_DEVICE float zero_of(int slot, int channel) const {
    if (!has_zeros_) return 0.0f;
    const float* zeros = b_.template part<float>(b_.work.shared.zeros);
    const int at = row_of(slot) * value_groups_ + channel / static_cast<int>(v_.group);
    float sum = 0.0f;
#pragma unroll 1
    for (int warp = 0; warp < kDecodeWarps; ++warp) sum += zeros[warp * 16 * kStrips * value_groups_ + at];
    return sum;
  }
  TOKCORE_DEVICE void clear_zeros() const {
    float* zeros = b_.template part<float>(b_.work.shared.zeros);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kDecodeWarps * 16 * kStrips * value_groups_; i += kDecodeThreads) {
      zeros[i] = 0.0f;
    }
  }

 private:
  static constexpr float kWeightUnit = 4096.0f;  // weights times this are fp16 numbers

  TOKCORE_DEVICE int row_of(int slot) const { return slot / 2 * 16 + slot % 2 * 8 + b_.quad; }
  TOKCORE_DEVICE unsigned char* weight_row(int slot) const {
    return b_.shared + b_.work.shared.weights + row_of(slot) * (b_.tile * kWeightBytes + kWeightPadding);
  }
  TOKCORE_DEVICE void read_weights(int token, cuda::FragmentA (&weights)[kStrips]) const {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      const int at = token * kWeightBytes + b_.within * 8;
      const uint2 upper = *reinterpret_cast<const uint2*>(weight_row(2 * strip) + at);
      const uint2 lower = *reinterpret_cast<const uint2*>(weight_row(2 * strip + 1) + at);
      weights[strip] = {{upper.x, lower.x, upper.y, lower.y}};
    }
  }
  // Puts the weights of a unit of tokens into shared memory, each times factor_of(token of the lane's four).
  template <class FactorOf>
  TOKCORE_DEVICE void put_unit(int unit, const ScoreFragment<kStrips>& p, FactorOf&& factor_of) const {
    const int token = token_of(unit, 0, 0);
    if (token >= b_.tile) return;
#pragma unroll
    for (int slot = 0; slot < 2 * kStrips; ++slot) {
      uint32_t words[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float weights[2];
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const float weight = p[slot / 2][unit][half][slot % 2 * 2 + odd];
          weights[odd] = weight != 0.0f ? weight * factor_of(half + 2 * odd) : 0.0f;
        }
        words[half] = cuda::ptx::pack_f16(weights[0], weights[1]);
      }
      *reinterpret_cast<uint2*>(weight_row(slot) + token * kWeightBytes) = make_uint2(words[0], words[1]);
    }
  }

  // Groups of tokens of a tile, whose channels have scales of their own.
  TOKCORE_DEVICE int token_groups(const QuantScheme& scheme) const {
    const int group = static_cast<int>(scheme.group);
    return b_.tile > group ? b_.tile / group : 1;
  }

  // Where local token j lies in its tier; null past the end and where its page is nowhere.
  struct Place {
    int64_t head;  // page * Hkv + head
    int token;     // of the page
    bool found;
  };
  TOKCORE_DEVICE Place place_of(int j) const {
    if (j >= b_.split.count) return {0, 0, false};
    const int64_t slot = b_.split.slot_of(b_.cache, tier_, j);
    return {slot >> b_.split.page_shift, static_cast<int>(slot & (page_ - 1)), slot >= 0};
  }

  TOKCORE_DEVICE void load_keys(unsigned char* stage, int first) const {
    const int thread = static_cast<int>(threadIdx.x), plane = b_.head_dim / codes_per_byte(k_.bits);
    const int chunks = per_page_ * plane / 16;
#pragma unroll 1
    for (int start = 0, base = 0; start < b_.tile; start += per_page_, base += chunks) {
      const Place place = place_of(first + start);
      if (!place.found) continue;  // its scores are set without looking at them
      const unsigned char* from = tier_.keys.data + place.head * tier_.keys.head_bytes + place.token * plane;
#pragma unroll 1
      for (int i = thread; i < chunks; i += kDecodeThreads) {
        b_.copy_chunk(stage + cuda::swizzled_chunk(base + i) * 16, from + i * 16);
      }
    }
    if (k_.axis == QuantAxis::kToken) {
      load_token_scales(stage + k_scale_, tier_.keys, tier_.keys.scale, key_groups_, first);
      if (!k_.symmetric) load_token_scales(stage + k_zero_, tier_.keys, tier_.keys.zero, key_groups_, first);
    } else {
      load_channel_scales(stage + k_scale_, tier_.keys, tier_.keys.scale, first);
      if (!k_.symmetric) load_channel_scales(stage + k_zero_, tier_.keys, tier_.keys.zero, first);
    }
    if (v_.axis == QuantAxis::kChannel) return;
    load_token_scales(stage + v_scale_, tier_.values, tier_.values.scale, value_groups_, first);
    if (!v_.symmetric) load_token_scales(stage + v_zero_, tier_.values, tier_.values.zero, value_groups_, first);
  }
  TOKCORE_DEVICE void load_token_scales(unsigned char* to, const KvPages& pages, const BFloat16* scales, int groups,
                                        int first) const {
    const int per_group = b_.tile / 8;  // chunks; a power of two
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < groups * per_group; i += kDecodeThreads) {
      const int group = i / per_group;
      const Place place = place_of(first + i % per_group * 8);
      const BFloat16* from = scales + place.head * pages.head_scales + group * page_ + place.token;
      b_.copy_chunk(to + i * 16, place.found ? reinterpret_cast<const unsigned char*>(from) : nullptr);
    }
  }
  TOKCORE_DEVICE void load_channel_scales(unsigned char* to, const KvPages& pages, const BFloat16* scales,
                                          int first) const {
    const int chunks = b_.head_dim / 8, group = static_cast<int>(pages.scheme.group);
#pragma unroll 1
    for (int row = 0; row < token_groups(pages.scheme); ++row) {
      const Place place = place_of(first + row * group);
      const BFloat16* from = scales + place.head * pages.head_scales + place.token / group * b_.head_dim;
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < chunks; i += kDecodeThreads) {
        b_.copy_chunk(to + (row * chunks + i) * 16,
                      place.found ? reinterpret_cast<const unsigned char*>(from + i * 8) : nullptr);
      }
    }
  }
  TOKCORE_DEVICE void load_values(unsigned char* stage, int first) const {
    const int thread = static_cast<int>(threadIdx.x), plane = value_page_ / codes_per_byte(v_.bits);
    const int chunks = b_.head_dim * plane / 16;
#pragma unroll 1
    for (int start = 0, base = 0; start < b_.tile; start += per_page_, base += chunks) {
      const Place place = place_of(first + start);
      if (!place.found) continue;
      const unsigned char* from = tier_.values.data + place.head * tier_.values.head_bytes;
      // Half a page of bytes lies in runs, one for each 16 channels.
      const int run = plane, skipped = (v_.bits < 8 ? 0 : page_ - per_page_), ahead = v_.bits < 8 ? 0 : place.token;
#pragma unroll 1
      for (int i = thread; i < chunks; i += kDecodeThreads) {
        b_.copy_chunk(stage + cuda::swizzled_chunk(base + i) * 16,
                      from + (i + (skipped == 0 ? 0 : i / run * skipped) + ahead) * 16);
      }
    }
    if (v_.axis == QuantAxis::kToken) return;
    load_channel_scales(stage + v_scale_, tier_.values, tier_.values.scale, first);
    if (!v_.symmetric) load_channel_scales(stage + v_zero_, tier_.values, tier_.values.zero, first);
  }

  // A group of tokens at a time (or what the tile has of it): its sums are exact but for the weights' rounding, and are
  // scaled at its end. Zeros join with the weights as rounded, which a product with ones adds up.
  TOKCORE_DEVICE void accumulate_by_channel(int piece, OutFragment<kStrips>& out) const {
    const unsigned char* stage = b_.stage(piece);
    const int first = piece / 2 * b_.tile;
    const int plane = value_page_ / codes_per_byte(v_.bits), words = plane / 4;
    const int run = static_cast<int>(v_.group) < per_page_ ? static_cast<int>(v_.group) : per_page_;
    const int offset = value_page_ > per_page_ ? (b_.split.first + first) & (page_ - 1) : 0;
    const float middle = static_cast<float>(middle_code(v_.bits));
    constexpr uint32_t kOnes = 0x3c003c00u;  // two fp16 ones
#pragma unroll 1
    for (int start = 0; start < b_.tile; start += run) {
      const int base = start / per_page_ * (b_.head_dim * plane / 16), within = start % per_page_;
      float totals[kStrips][4] = {};
#pragma unroll 1
      for (int token = start; token < start + run; token += 16) {
        cuda::FragmentA weights[kStrips];
        read_weights(token, weights);
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) Mma::multiply(totals[strip], weights[strip], {{kOnes, kOnes}});
      }
#pragma unroll
      for (int unit = 0; unit < kChannelUnits; ++unit) {
        const int channel = (b_.warp + unit * kDecodeWarps) * 16;
        if (channel >= b_.head_dim) break;
        float sums[kStrips][2][4] = {};
        cuda::QuadCursor cursor((offset + within) / 4 + b_.within, words, v_.bits);
#pragma unroll 1
        for (int token = start; token < start + run; token += 16, cursor.advance(4)) {
          const cuda::CodePlane codes(v_.bits, cursor.shift());
          cuda::FragmentA weights[kStrips];
          read_weights(token, weights);
          const int chunk = base + channel / 16 * plane + cursor.word() * 4 + b_.quad / 2;
          const uint2 pair =
              *reinterpret_cast<const uint2*>(stage + cuda::swizzled_chunk(chunk) * 16 + b_.quad % 2 * 8);
#pragma unroll
          for (int strip = 0; strip < kStrips; ++strip) {
            Mma::multiply(sums[strip][0], weights[strip], {{codes.even(pair.x), codes.odd(pair.x)}});
            Mma::multiply(sums[strip][1], weights[strip], {{codes.even(pair.y), codes.odd(pair.y)}});
          }
        }
        const int at = start / run * b_.head_dim + channel + b_.within * 4;
        const ScaleQuad scale(reinterpret_cast<const BFloat16*>(stage + v_scale_) + at);
        float zero[4] = {};
        if (!v_.symmetric) {
          const ScaleQuad found(reinterpret_cast<const BFloat16*>(stage + v_zero_) + at);
#pragma unroll
          for (int i = 0; i < 4; ++i) zero[i] = fmaf(middle, scale.x[i], found.x[i]) / kWeightUnit;
        }
#pragma unroll
        for (int slot = 0; slot < 2 * kStrips; ++slot) {
          const float total = totals[slot / 2][slot % 2 * 2];
          if (total == 0.0f) continue;  // what a row does not weigh does not reach it, not even NaN
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& sum = out[slot / 2][unit][i % 2][slot % 2 * 2 + i / 2];
            const float product = sums[slot / 2][i % 2][slot % 2 * 2 + i / 2];
            sum = fmaf(product, scale.x[i] / kWeightUnit, fmaf(total, zero[i], sum));
          }
        }
      }
    }
  }

  // Products with the words of one step of 16 channels of the warp's tokens, as operands made by `codes`.
  template <class Make>
  TOKCORE_DEVICE void multiply_keys(const unsigned char* stage, int step, const cuda::QuadCursor& cursor,
                                    ScoreFragment<kStrips>& sums, Make&& make) const {
    cuda::FragmentA a[kStrips];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) a[strip] = queries_.operand(strip, step, b_.lane);
    const int plane = b_.head_dim / codes_per_byte(k_.bits);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int token = (b_.warp + unit * kDecodeWarps) * 16;
      if (token >= b_.tile) break;
      const int chunk = token / 16 * plane + cursor.word() * 4 + b_.quad / 2;
      const uint2 pair = *reinterpret_cast<const uint2*>(stage + cuda::swizzled_chunk(chunk) * 16 + b_.quad % 2 * 8);
      const cuda::FragmentB left = make(unit, pair.x), right = make(unit, pair.y);
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        Mma::multiply(sums[strip][unit][0], a[strip], left);
        Mma::multiply(sums[strip][unit][1], a[strip], right);
      }
      if (!has_rests_) continue;
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        const cuda::FragmentA rest = queries_.operand(kStrips + strip, step, b_.lane);
        Mma::multiply(sums[strip][unit][0], rest, left);
        Mma::multiply(sums[strip][unit][1], rest, right);
      }
    }
  }

  static TOKCORE_DEVICE void clear(ScoreFragment<kStrips>& sums) {
#pragma unroll
    for (int i = 0; i < kStrips * kUnits * 8; ++i) sums[i / (kUnits * 8)][i / 8 % kUnits][i / 4 % 2][i % 4] = 0.0f;
  }

  TOKCORE_DEVICE void score_by_token(const unsigned char* stage, ScoreFragment<kStrips>& scores) const {
    const int steps = static_cast<int>(k_.group) / 16, words = b_.head_dim / codes_per_byte(k_.bits) / 4;
    const float middle = static_cast<float>(middle_code(k_.bits));
    const float* query_sums = b_.template part<float>(b_.work.shared.sums);
    const float* units = b_.template part<float>(b_.work.shared.units);
    clear(scores);
    cuda::QuadCursor cursor(b_.within, words, k_.bits);
#pragma unroll 1
    for (int group = 0; group < key_groups_; ++group) {
      ScoreFragment<kStrips> sums;
      clear(sums);
#pragma unroll 1
      for (int step = group * steps; step < (group + 1) * steps; ++step, cursor.advance(4)) {
        const cuda::CodePlane codes(k_.bits, cursor.shift());
        multiply_keys(stage, step, cursor, sums,
                      [&](int, uint32_t word) { return cuda::FragmentB{{codes.even(word), codes.odd(word)}}; });
      }
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const int token = token_of(unit, 0, 0);
        if (token >= b_.tile) continue;
        const int at = group * b_.tile + token;
        const ScaleQuad scale(reinterpret_cast<const BFloat16*>(stage + k_scale_) + at);
        float offset[4] = {};
        if (!k_.symmetric) {
          const ScaleQuad zero(reinterpret_cast<const BFloat16*>(stage + k_zero_) + at);
#pragma unroll
          for (int i = 0; i < 4; ++i) offset[i] = fmaf(middle, scale.x[i], zero.x[i]);
        }
#pragma unroll
        for (int slot = 0; slot < 2 * kStrips; ++slot) {
          const float query_sum = k_.symmetric ? 0.0f : query_sums[row_of(slot) * key_groups_ + group];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float sum = sums[slot / 2][unit][i % 2][slot % 2 * 2 + i / 2];
            float& score = scores[slot / 2][unit][i % 2][slot % 2 * 2 + i / 2];
            score += fmaf(sum, scale.x[i], query_sum * offset[i]);
          }
        }
      }
    }
    multiply_rows(scores, [&](int slot, int) { return units[row_of(slot)]; });
  }

  template <class FactorOf>
  static TOKCORE_DEVICE void multiply_rows(ScoreFragment<kStrips>& scores, FactorOf&& factor_of) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int slot = 0; slot < 2 * kStrips; ++slot) {
        const float factor = factor_of(slot, unit);
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[slot / 2][unit][i % 2][slot % 2 * 2 + i / 2] *= factor;
      }
    }
  }

  // Keys in units of 2^(exponent - 10), so that the greatest are below 2^12.
  TOKCORE_DEVICE void score_by_channel(const unsigned char* stage, ScoreFragment<kStrips>& scores) const {
    const int words = b_.head_dim / codes_per_byte(k_.bits) / 4, steps = b_.head_dim / 16;
    const float middle = static_cast<float>(middle_code(k_.bits));
    const BFloat16* scales = reinterpret_cast<const BFloat16*>(stage + k_scale_);
    const BFloat16* zeros = reinterpret_cast<const BFloat16*>(stage + k_zero_);
    int rows[kUnits], exponents[kUnits];
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const int row = (b_.warp + unit * kDecodeWarps) * 16 / static_cast<int>(k_.group);
      rows[unit] = (row < token_groups(k_) ? row : 0) * b_.head_dim;
      float greatest = 0.0f;
#pragma unroll 1
      for (int i = b_.lane; i < b_.head_dim; i += 32) {
        const float scale = cuda::to_float(scales[rows[unit] + i]);
        const float zero = k_.symmetric ? 0.0f : fmaf(middle, scale, cuda::to_float(zeros[rows[unit] + i]));
        greatest = fmaxf(greatest, fmaf(middle, scale, fabsf(zero)));
      }
#pragma unroll 1
      for (int step = 1; step < 32; step *= 2) {
        greatest = fmaxf(greatest, __shfl_xor_sync(cuda::kAllLanes, greatest, step));
      }
      exponents[unit] = exponent_of(greatest) - 10;
    }
    clear(scores);
    cuda::QuadCursor cursor(b_.within, words, k_.bits);
#pragma unroll 1
    for (int step = 0; step < steps; ++step, cursor.advance(4)) {
      const cuda::CodePlane codes(k_.bits, cursor.shift());
      const int channel = step * 16 + b_.within * 4;
      multiply_keys(stage, step, cursor, scores, [&](int unit, uint32_t word) {
        const float norm = power_of_two(-exponents[unit]);
        const ScaleQuad scale(scales + rows[unit] + channel);
        float offset[4] = {};
        if (!k_.symmetric) {
          const ScaleQuad zero(zeros + rows[unit] + channel);
#pragma unroll
          for (int i = 0; i < 4; ++i) offset[i] = fmaf(middle, scale.x[i], zero.x[i]) * norm;
        }
        const auto dequantized = [&](uint32_t pair, int i) {
          return cuda::ptx::fma_f16x2(pair, cuda::ptx::pack_f16(scale.x[i] * norm, scale.x[i + 2] * norm),
                                      cuda::ptx::pack_f16(offset[i], offset[i + 2]));
        };
        return cuda::FragmentB{{dequantized(codes.even(word), 0), dequantized(codes.odd(word), 1)}};
      });
    }
    const float* units = b_.template part<float>(b_.work.shared.units);
    multiply_rows(scores, [&](int slot, int unit) { return units[row_of(slot)] * power_of_two(exponents[unit]); });
  }

  const DecodeBlock& b_;
  const KvTier& tier_;
  QueryFragments<uint16_t, 8> queries_;
  QuantScheme k_, v_;
  int page_, key_groups_, value_groups_;
  bool has_zeros_;             // something is added up for the zeros of the values; groups bring their NaN that way
  bool has_rests_;             // the queries are sums of two fp16 numbers
  int per_page_, value_page_;  // tokens of a page in a tile, and tokens whose values are copied
  int k_scale_, k_zero_, v_scale_, v_zero_;  // bytes from the start of a stage
};

}  // namespace tokcore::kv_cache
