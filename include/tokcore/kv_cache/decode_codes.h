// Scores and weighted sums of a block of codes on AMX int8 tiles, straight from the codes.
//
// Queries and weights become integers of 16 bits, split into a signed high and a signed low byte: eight queries fill
// the sixteen rows of the first operand. Codes are unsigned bytes, the second operand; 8-bit pages are read where they
// lie, others are unpacked by a shift and a mask a line. Scales and zeros never touch a code:
//
//   q . k^ = k_scale_t (q . c_t) + k_zero_t sum(q)       scale and zero of a token (or of a group of its channels)
//   q . k^ = (q * k_scale) . c_t + q . k_zero            of a channel: folded into q, once per group of tokens
//   sum_t p_t v^_t = sum_t (p_t v_scale_t) c_t + sum_t p_t v_zero_t
//   sum_t p_t v^_t = v_scale sum_t p_t c_t + v_zero sum_t p_t   of a channel: once per group of tokens
#pragma once

#include "tokcore/kv_cache/decode_codes_query.h"

namespace tokcore::cpu::TOKCORE_ISA {

class CodeAttention {
 public:
  static constexpr int64_t kRows = CodeQueries::kRows;

  CodeAttention(const KvCacheParams& cache, int64_t padded_rows, Arena& arena)
      : cache_(cache),
        D_(cache.head_dim),
        num_steps_(ceil_div(cache.head_dim, 64)),
        queries_(cache, padded_rows, arena),
        unpacked_(arena.take<uint8_t>(kTiles * max(num_steps_, 2) * kTileBytes)),
        sums_(arena.take<int32_t>(2 * kTiles * 256)),
        weights_(arena.take<int8_t>(16 * kWeightStride)),
        group_weights_(arena.take<int8_t>(shares_values_by_channel(cache) ? kVariants * 16 * kWeightStride : 0)),
        scaled_(arena.take<float>(kBlockTokens)),
        scales_(arena.take<float>(kBlockTokens)),
        zeros_(arena.take<float>(kBlockTokens)) {}

  // rows [padded_rows, D], divided by nothing yet: multiplied by the channel scale and rotated by the caller.
  void set_queries(const float* rows, int64_t padded_rows, float scale) { queries_.set(rows, padded_rows, scale); }
  void begin(const Split& split) {
    tier_ = &cache_.tiers[split.source == kHighPages ? kHighTier : kLowTier];
    queries_.use_scheme(tier_->keys);
  }

  template <class Step>
  void score(const Block& block, int64_t first_row, int64_t num_rows, float* scores, Step&& step) {
    const KvPages& keys = tier_->keys;
    const bool by_channel = keys.scheme.axis == QuantAxis::kChannel;
    const int64_t run = by_channel ? min(keys.scheme.group, kTiles * 16) : min(cache_.page_size, kTiles * 16);
    for (int64_t i = 0; i < block.num_segments; ++i) {
      const Segment& page = block.segments[i];
      for (int64_t token = 0; token < cache_.page_size; token += run) {
        if (by_channel && token % keys.scheme.group == 0) {
          read_pending(first_row, num_rows);  // made by the queries as folded before
          queries_.fold(first_row, num_rows, keys, page.place, token / keys.scheme.group);
        }
        score_tiles(page, token, run / 16, first_row, num_rows, scores + i * block.width + token);
      }
      step(PageKind::kKeys, i + 1, block.num_segments);
    }
    read_pending(first_row, num_rows);
  }

  float unit() const { return 1.0f; }
  float weigh(RowSoftmax& state, int64_t, float* scores, int64_t columns, float) const {
    return state.take(scores, columns);
  }

  // out [kRows, D] = out * shrink + weights * values.
  template <class Step>
  void accumulate(const Block& block, int64_t num_rows, const float* weights, const float* shrink, float* out,
                  Step&& step) {
    const int64_t group = tier_->values.scheme.group;
    if (tier_->values.scheme.axis == QuantAxis::kChannel) {
      return accumulate_by_channel(block, num_rows, weights, shrink, out, step);
    }
    int64_t done = 0;
    const int64_t total = round_up(block.columns(), 64) * (D_ / group) * ceil_div(group, 64);
    for (int64_t first = 0; first < D_; first += group) {
      prepare_weights(block, first / group, num_rows, weights);
      for (int64_t channel = first; channel < first + group; channel += 64) {
        const int64_t num_tiles = min(first + group - channel, 64) / 16;
        multiply_values(block, channel / 16, num_tiles, [&](int64_t tokens) {
          done += tokens;
          step(PageKind::kValues, done, total);
        });
        for (int64_t row = 0; row < num_rows; ++row) {
          add_sums(row, num_tiles, shrink[row], out + row * D_ + channel);
        }
      }
    }
  }

  void finish(const float* from, float* to) const {
    for (int64_t d = 0; d < D_; ++d) to[d] = from[d];
  }

 private:
  static constexpr int64_t kTiles = 4;  // made at a time
  static constexpr int64_t kTileBytes = 1024;
  static constexpr int64_t kWeightStride = kBlockTokens + 64;  // an odd number of lines
  static constexpr int64_t kVariants = 4;                      // groups of 16 tokens in a step of 64
  static constexpr int64_t kMostGroups = kBlockTokens / 16;
  static constexpr float kLeastWeight = 0x1p-100f;  // of a group; what is less counts as nothing

  // ---- keys --------------------------------------------------------------------------------------------------------

  // Sums of the products of one unit with up to four tiles of tokens, not yet turned into scores.
  struct Pending {
    int64_t num_tiles = 0, unit = 0, place = 0, token = 0;
    const int32_t* sums = nullptr;
    float* scores = nullptr;
  };

  // num_tiles tiles of 16 tokens each, from `token` of the page on. Sums are read back while the next ones are made.
  void score_tiles(const Segment& page, int64_t token, int64_t num_tiles, int64_t first_row, int64_t num_rows,
                   float* scores) {
    const KvPages& keys = tier_->keys;
    const int64_t tile_bytes = code_bytes(16 * D_, keys.scheme.bits);
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(page.k) + token / 16 * tile_bytes;
    const bool in_place = keys.scheme.bits == 8 && D_ % 64 == 0;
    const int64_t unpacked_bytes = num_steps_ * kTileBytes;
    if (!in_place) {
      const int64_t plane_bytes = tile_bytes;  // of a plane, once unpacked
      for (int64_t j = 0; j < num_tiles; ++j) {
        unpack(codes + j * tile_bytes, tile_bytes, keys.scheme.bits, unpacked_ + j * unpacked_bytes, plane_bytes);
      }
    }
    for (int64_t unit = 0; unit < queries_.num_units(); ++unit) {
      int32_t* sums = pending_.sums == sums_ ? sums_ + kTiles * 256 : sums_;
      multiply_keys(queries_.operand(first_row, unit), queries_.stride(), queries_.first_step(unit),
                    queries_.end_step(unit), in_place ? codes : unpacked_, in_place ? tile_bytes : unpacked_bytes,
                    num_tiles, sums);
      read_pending(first_row, num_rows);
      pending_ = {num_tiles, unit, page.place, token, sums, scores};
    }
  }
  void read_pending(int64_t first_row, int64_t num_rows) {
    for (int64_t j = 0; j < pending_.num_tiles; ++j) {
      queries_.to_scores(first_row, num_rows, pending_.unit, pending_.sums + j * 256, tier_->keys, pending_.place,
                         pending_.token + j * 16, cache_.page_size, pending_.scores + j * 16, kScoreStride);
    }
    pending_.num_tiles = 0;
  }

  static void multiply_keys(const int8_t* a, int64_t a_stride, int64_t first, int64_t end, const uint8_t* tiles,
                            int64_t tile_stride, int64_t num_tiles, int32_t* sums) {
    asm volatile("" ::: "memory");
    zero_tiles();
    for (int64_t step = first; step < end; ++step) {
      const uint8_t* at = tiles + step * kTileBytes;
      multiply_step(a + step * 64, a_stride, at, at + tile_stride, at + 2 * tile_stride, at + 3 * tile_stride,
                    num_tiles);
    }
    store_tiles(num_tiles, sums);
  }

  static void zero_tiles() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  static void multiply_step(const int8_t* a, int64_t a_stride, const uint8_t* tile0, const uint8_t* tile1,
                            const uint8_t* tile2, const uint8_t* tile3, int64_t num_tiles) {
    _tile_loadd(4, a, a_stride);
    _tile_loadd(5, tile0, 64);
    _tile_dpbsud(0, 4, 5);
    if (num_tiles > 1) {
      _tile_loadd(6, tile1, 64);
      _tile_dpbsud(1, 4, 6);
    }
    if (num_tiles > 2) {
      _tile_loadd(7, tile2, 64);
      _tile_dpbsud(2, 4, 7);
      _tile_loadd(5, tile3, 64);
      _tile_dpbsud(3, 4, 5);
    }
  }
  static void store_tiles(int64_t num_tiles, int32_t* sums) {
    _tile_stored(0, sums, 64);
    if (num_tiles > 1) _tile_stored(1, sums + 256, 64);
    if (num_tiles > 2) {
      _tile_stored(2, sums + 512, 64);
      _tile_stored(3, sums + 768, 64);
    }
    asm volatile("" ::: "memory");
  }

  // Planes of codes, `bytes` of them, to a byte a code: plane i from to + i * plane_bytes on.
  static void unpack(const uint8_t* from, int64_t bytes, int bits, uint8_t* to, int64_t plane_bytes) {
    switch (bits) {
      case 8:
        return unpack_planes<8>(from, bytes, to, plane_bytes);
      case 4:
        return unpack_planes<4>(from, bytes, to, plane_bytes);
      default:
        return unpack_planes<2>(from, bytes, to, plane_bytes);
    }
  }
  template <int kBits>
  static void unpack_planes(const uint8_t* from, int64_t bytes, uint8_t* to, int64_t plane_bytes) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(top_code(kBits)));
    for (int64_t i = 0; i < bytes; i += 64) {
      const __m512i codes = _mm512_loadu_si512(from + i);
      if constexpr (kBits == 8) {
        _mm512_storeu_si512(to + i, codes);
      } else {
        _mm512_storeu_si512(to + i, _mm512_and_si512(codes, mask));
        _mm512_storeu_si512(to + plane_bytes + i, _mm512_and_si512(_mm512_srli_epi16(codes, kBits), mask));
      }
      if constexpr (kBits == 2) {
        _mm512_storeu_si512(to + 2 * plane_bytes + i, _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask));
        _mm512_storeu_si512(to + 3 * plane_bytes + i, _mm512_and_si512(_mm512_srli_epi16(codes, 6), mask));
      }
    }
  }

  // ---- values ------------------------------------------------------------------------------------------------------

  // weights_ = weights * v_scale as integers, and what is to be added for the zeros.
  void prepare_weights(const Block& block, int64_t group, int64_t num_rows, const float* weights) {
    const KvPages& values = tier_->values;
    const bool poisoned = load_scales(block, values, group);
    const int64_t columns = block.columns(), padded = round_up(columns, 64);
    for (int64_t i = columns; i < padded; ++i) scaled_[i] = zeros_[i] = 0.0f;
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* from = weights + row * kScoreStride;
      __m512 greatest = _mm512_setzero_ps();
      for (int64_t i = 0; i < columns; i += 16) {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(from + i), _mm512_loadu_ps(scales_ + i));
        _mm512_storeu_ps(scaled_ + i, scaled);
        greatest = _mm512_max_ps(scaled, greatest);
      }
      const float most = _mm512_reduce_max_ps(greatest);
      float unit = most > 0.0f ? most / kMostInteger : 0.0f;
      const __m512 inverse = _mm512_set1_ps(most > 0.0f ? kMostInteger / most : 0.0f);
      int8_t* high = weights_ + row * kWeightStride;
      int8_t* low = high + kRows * kWeightStride;
      // Zeros join with the weights as rounded: what rounding loses then counts by the values, not by codes and zeros.
      __m512 of_zeros[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int64_t i = 0; i < padded; i += 64) {
        __m512i whole[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          whole[j] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(scaled_ + i + j * 16), inverse));
          of_zeros[j % 2] =
              _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[j]), _mm512_loadu_ps(zeros_ + i + j * 16), of_zeros[j % 2]);
        }
        store_weight_bytes(whole, high + i, low + i);
      }
      if (poisoned) unit = __builtin_nanf("");
      units_[row] = unit;
      addends_[row] = unit * _mm512_reduce_add_ps(_mm512_add_ps(of_zeros[0], of_zeros[1]));
    }
  }

  // 64 integers in [0, kMostInteger] as 256 * high + low with signed bytes.
  static void store_weight_bytes(const __m512i whole[4], int8_t* high, int8_t* low) {
    const __m512i half = _mm512_set1_epi32(128), low_bytes = _mm512_set1_epi16(0xff);
    const __m512i first = _mm512_packus_epi32(_mm512_add_epi32(whole[0], half), _mm512_add_epi32(whole[1], half));
    const __m512i last = _mm512_packus_epi32(_mm512_add_epi32(whole[2], half), _mm512_add_epi32(whole[3], half));
    // Packing leaves groups of four bytes, one of each vector, lane by lane.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i upper = _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(last, 8));
    const __m512i lower = _mm512_packus_epi16(_mm512_and_si512(first, low_bytes), _mm512_and_si512(last, low_bytes));
    const __m512i middle = _mm512_set1_epi8(static_cast<char>(0x80));  // the byte of whole + 128 is that of low + 128
    _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, upper));
    _mm512_storeu_si512(low, _mm512_xor_si512(_mm512_permutexvar_epi32(order, lower), middle));
  }

  // fp32 scales of a group of channels for every column, and zeros in units of them; whether a scale is NaN.
  bool load_scales(const Block& block, const KvPages& values, int64_t group) {
    const Vec middle(-static_cast<float>(middle_code(values.scheme.bits)));
    const Vec smallest(1.0f / static_cast<float>(top_code(values.scheme.bits)));
    __mmask16 nan = 0;
    for (int64_t i = 0; i < block.num_segments; ++i) {
      const int64_t first = block.segments[i].place * values.head_scales + group * cache_.page_size;
      for (int64_t token = 0; token < cache_.page_size; token += 16) {
        Vec scale = Vec::load(values.scale + first + token);
        nan = static_cast<__mmask16>(nan | is_nan(scale).m);
        Vec zero = middle;
        if (values.zero != nullptr) {
          // Tokens of equal numbers have scale 0 and codes 0: any scale will do, best one like their neighbours'.
          zero = Vec::load(values.zero + first + token);
          const Mask positive = Vec(0.0f) < scale;
          scale = select(positive, scale, abs(zero) * smallest);
          zero = zero_unless(Vec(0.0f) < scale, zero / scale);
        }
        scale.store(scales_ + i * block.width + token);
        zero.store(zeros_ + i * block.width + token);
      }
    }
    return nan != 0;
  }

  // Sums for num_tiles tiles of 16 channels over all tokens of the block. Pages are taken in groups of 64 tokens or
  // more, each a few tiles.
  template <class Step>
  void multiply_values(const Block& block, int64_t channel_block, int64_t num_tiles, Step&& step) {
    const int bits = tier_->values.scheme.bits;
    const int64_t page_size = cache_.page_size;
    const int64_t pages = max(64 / page_size, 1), tile_steps = max(page_size / 64, 1);
    zero_tiles();
    for (int64_t first = 0; first < block.num_segments; first += pages) {
      const uint8_t* tiles[kTiles];
      open_tiles(block, first, pages, bits, channel_block, num_tiles, tiles);
      asm volatile("" ::: "memory");
      for (int64_t i = 0; i < tile_steps; ++i) {
        const int64_t at = i * kTileBytes;
        multiply_step(weights_ + first * page_size + i * 64, kWeightStride, tiles[0] + at, tiles[1] + at, tiles[2] + at,
                      tiles[3] + at, num_tiles);
      }
      step(page_size * pages);
    }
    store_tiles(num_tiles, sums_);
  }

  // Codes of num_tiles blocks of 16 channels in up to `pages` pages from segment `first` on, a byte each.
  void open_tiles(const Block& block, int64_t first, int64_t pages, int bits, int64_t channel_block, int64_t num_tiles,
                  const uint8_t* (&tiles)[kTiles]) const {
    const int64_t page_size = cache_.page_size;
    const int64_t block_bytes = code_bytes(16 * page_size, bits);  // of 16 channels in a page
    const bool in_place = bits == 8 && page_size >= 64;
    for (int64_t j = 0; j < kTiles; ++j) {
      const int64_t offset = (channel_block + j) * block_bytes;
      uint8_t* to = unpacked_ + j * 2 * kTileBytes;
      tiles[j] = in_place ? reinterpret_cast<const uint8_t*>(block.segments[first].v) + offset : to;
      if (in_place || j >= num_tiles) continue;
      for (int64_t i = 0; i < min(pages, block.num_segments - first); ++i, to += page_size * 16) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(block.segments[first + i].v) + offset;
        unpack(from, block_bytes, bits, to, block_bytes);
      }
    }
  }

  void add_sums(int64_t row, int64_t num_tiles, float shrink, float* out) const {
    const __m512 factor = _mm512_set1_ps(shrink), unit = _mm512_set1_ps(units_[row]);
    const __m512 addend = _mm512_set1_ps(addends_[row]);
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const __m512 sum = join_bytes(sums_ + tile * 256 + row * 16);
      const __m512 kept = _mm512_fmadd_ps(_mm512_loadu_ps(out + tile * 16), factor, addend);
      _mm512_storeu_ps(out + tile * 16, _mm512_fmadd_ps(sum, unit, kept));
    }
  }

  // ---- values that share scales by channel
  // ---------------------------------------------------------------------------

  static bool shares_values_by_channel(const KvCacheParams& cache) {
    bool any = false;
    for (const KvTier& tier : cache.tiers) any |= tier.values.scheme.axis == QuantAxis::kChannel;
    return any;
  }

  // As accumulate(), a group of tokens at a time: its sums are integers, which are scaled at its end.
  template <class Step>
  void accumulate_by_channel(const Block& block, int64_t num_rows, const float* weights, const float* shrink,
                             float* out, Step&& step) {
    const int64_t page_size = cache_.page_size, group = tier_->values.scheme.group;
    const int64_t pages = max(64 / page_size, 1);
    for (int64_t row = 0; row < num_rows; ++row) {
      if (shrink[row] == 1.0f) continue;
      for (int64_t d = 0; d < D_; ++d) out[row * D_ + d] *= shrink[row];
    }
    prepare_group_weights(block, group, num_rows, weights);
    for (int64_t first = 0; first < block.num_segments; first += pages) {
      const int64_t tokens = min(pages, block.num_segments - first) * page_size;
      for (int64_t channel = 0; channel < D_; channel += 16 * kTiles) {
        const int64_t num_tiles = min(D_ - channel, 16 * kTiles) / 16;
        const uint8_t* tiles[kTiles];
        open_tiles(block, first, pages, tier_->values.scheme.bits, channel / 16, num_tiles, tiles);
        for (int64_t token = 0; token < tokens; token += group) {
          multiply_group(tiles, first * page_size, token, group, num_tiles);
          const Segment& page = block.segments[first + token / page_size];
          add_group(page.place, token % page_size / group, (first * page_size + token) / group, channel, num_tiles,
                    num_rows, out);
        }
      }
      step(PageKind::kValues, min(first + pages, block.num_segments), block.num_segments);
    }
  }

  // group_weights_ = weights as integers, with a unit for each group and row. Groups narrower than a step of 64 tokens
  // get operands of their own, in which the other tokens are zero.
  void prepare_group_weights(const Block& block, int64_t group, int64_t num_rows, const float* weights) {
    const int64_t columns = block.columns(), padded = round_up(columns, 64);
    for (int64_t variant = 0; variant < max(64 / group, 1); ++variant) {
      for (int64_t row = 0; row < num_rows; ++row) {
        int8_t* high = group_weights_ + (variant * 16 + row) * kWeightStride;
        __builtin_memset(high, 0, static_cast<size_t>(padded));
        __builtin_memset(high + kRows * kWeightStride, 0, static_cast<size_t>(padded));
      }
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* from = weights + row * kScoreStride;
      for (int64_t first = 0; first < columns; first += group) {
        __m512 greatest = _mm512_setzero_ps();
        for (int64_t i = first; i < first + group; i += 16) {
          greatest = _mm512_max_ps(_mm512_loadu_ps(from + i), greatest);
        }
        const float most = _mm512_reduce_max_ps(greatest);
        GroupSum& sum = group_sums_[row][first / group];
        sum = {};
        if (most < kLeastWeight) continue;
        const __m512 inverse = _mm512_set1_ps(kMostInteger / most);
        int8_t* high = group_weights_ + (first % 64 / group * 16 + row) * kWeightStride;
        int8_t* low = high + kRows * kWeightStride;
        __m512i total = _mm512_setzero_si512();
        for (int64_t i = first; i < first + group; i += 16) {
          const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + i), inverse));
          store_bytes(whole, high + i, low + i);
          total = _mm512_add_epi32(total, whole);
        }
        sum = {most / kMostInteger, static_cast<float>(_mm512_reduce_add_epi32(total))};
      }
    }
  }

  // Sums for the group from `token` of the opened pages on, whose first one begins at column `start` of the block.
  void multiply_group(const uint8_t* const (&tiles)[kTiles], int64_t start, int64_t token, int64_t group,
                      int64_t num_tiles) {
    const int8_t* operand = group_weights_ + token % 64 / group * 16 * kWeightStride + start;
    asm volatile("" ::: "memory");
    zero_tiles();
    for (int64_t step = token / 64; step < ceil_div(token + group, 64); ++step) {
      const int64_t at = step * kTileBytes;
      multiply_step(operand + step * 64, kWeightStride, tiles[0] + at, tiles[1] + at, tiles[2] + at, tiles[3] + at,
                    num_tiles);
    }
    store_tiles(num_tiles, sums_);
  }

  // Zeros join with the weights as rounded, as above. What a row does not weigh at all does not reach it, not even NaN.
  void add_group(int64_t place, int64_t scale_row, int64_t index, int64_t channel, int64_t num_tiles, int64_t num_rows,
                 float* out) const {
    const KvPages& values = tier_->values;
    const int64_t at = place * values.head_scales + scale_row * D_ + channel;
    const __m512 middle = _mm512_set1_ps(-static_cast<float>(middle_code(values.scheme.bits)));
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const __m512 scale = Vec::load(values.scale + at + tile * 16).v;
      const __m512 zero =
          values.zero == nullptr ? _mm512_mul_ps(scale, middle) : Vec::load(values.zero + at + tile * 16).v;
      for (int64_t row = 0; row < num_rows; ++row) {
        const GroupSum& sum = group_sums_[row][index];
        if (sum.weights == 0.0f) continue;
        const __m512 of_zeros = _mm512_mul_ps(zero, _mm512_set1_ps(sum.weights));
        const __m512 value = _mm512_fmadd_ps(join_bytes(sums_ + tile * 256 + row * 16), scale, of_zeros);
        float* to = out + row * D_ + channel + tile * 16;
        _mm512_storeu_ps(to, _mm512_fmadd_ps(value, _mm512_set1_ps(sum.unit), _mm512_loadu_ps(to)));
      }
    }
  }

  struct GroupSum {
    float unit;     // what an integer of the group's weights is worth
    float weights;  // their sum, in units
  };

  const KvCacheParams& cache_;
  int64_t D_, num_steps_;
  CodeQueries queries_;
  const KvTier* tier_ = nullptr;
  uint8_t* unpacked_;  // [kTiles][steps][16][64]; lines of channels past D are multiplied by zero
  int32_t* sums_;      // [2][kTiles][16][16]
  Pending pending_;
  int8_t* weights_;        // [16, kWeightStride] high bytes of 8 rows, then low bytes
  int8_t* group_weights_;  // [kVariants][16, kWeightStride]
  GroupSum group_sums_[kRows][kMostGroups] = {};
  float* scaled_;  // [kBlockTokens]
  float* scales_;  // [kBlockTokens]
  float* zeros_;   // [kBlockTokens]
  float units_[kRows] = {}, addends_[kRows] = {};
};

}  // namespace tokcore::cpu::TOKCORE_ISA
