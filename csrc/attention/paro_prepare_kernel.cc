// The prologue of PARO attention: rotation, order, smoothing, codes. Compiled once per instruction-set level, without
// contraction of multiplications and additions.
#include "tokcore/attention/paro_codes.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/cpu/threads.h"
#include "tokcore/cpu/transpose.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

constexpr int64_t kMostHeadDim = 256;
constexpr int kChannels = 16;  // of values at a time

template <class T>
void load_row(const T* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) Vec::load(from + i).store(to + i);
  for (; i < size; ++i) to[i] = to_float(from[i]);
}

// Neighbouring lanes change places.
Vec swap_pairs(Vec x) {
#if defined(__AVX512F__)
  return _mm512_permute_ps(x.v, 0xb1);
#elif defined(__AVX2__)
  return _mm256_permute_ps(x.v, 0xb1);
#else
  return _mm_shuffle_ps(x.v, x.v, 0xb1);
#endif
}
// Every number twice: a, a, b, b, ...
Vec load_twice(const float* from) {
#if defined(__AVX512F__)
  const __m512i places = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(places, _mm512_castps256_ps512(_mm256_loadu_ps(from)));
#elif defined(__AVX2__)
  const __m256i places = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), places);
#else
  return _mm_setr_ps(from[0], from[0], from[1], from[1]);
#endif
}

// Pairs of neighbours, kTwice: cos and sin have one number a pair. The first of a pair takes the product with the sine
// negated and then a sum: gcc 12 makes a fused operation of alternating sums and differences even where contraction is
// off.
template <bool kTwice>
void rotate_neighbours(const float* cos, const float* sin, int64_t size, float* x) {
  alignas(64) static constexpr float kSigns[16] = {-0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f,
                                                   -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f};
  const auto flip = [](Vec value) {
    const Vec signs = Vec::load(kSigns);
#if defined(__AVX512F__)
    return Vec(_mm512_xor_ps(value.v, signs.v));
#elif defined(__AVX2__)
    return Vec(_mm256_xor_ps(value.v, signs.v));
#else
    return Vec(_mm_xor_ps(value.v, signs.v));
#endif
  };
  const auto turn = [&](Vec value, Vec c, Vec s) { return value * c + swap_pairs(value) * flip(s); };
  int64_t i = 0;
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) {
    const Vec c = kTwice ? load_twice(cos + i / 2) : Vec::load(cos + i);
    const Vec s = kTwice ? load_twice(sin + i / 2) : Vec::load(sin + i);
    turn(Vec::load(x + i), c, s).store(x + i);
  }
  if (i == size) return;
  alignas(64) float rest[3][Vec::kLanes] = {};
  for (int64_t j = i; j < size; ++j) {
    rest[0][j - i] = x[j];
    rest[1][j - i] = cos[kTwice ? j / 2 : j];
    rest[2][j - i] = sin[kTwice ? j / 2 : j];
  }
  turn(Vec::load(rest[0]), Vec::load(rest[1]), Vec::load(rest[2])).store(rest[0]);
  for (int64_t j = i; j < size; ++j) x[j] = rest[0][j - i];
}

// x of a token, rotated in place.
void rotate_row(const ParoRotation& rotation, int64_t token, int64_t size, float* __restrict x) {
  const int64_t row = token - rotation.first;
  if (rotation.cos == nullptr || row < 0 || row >= rotation.rows) return;
  const float* __restrict cos = rotation.cos + row * rotation.width;
  const float* __restrict sin = rotation.sin + row * rotation.width;
  const int64_t half = size / 2;
  if (rotation.interleaved) {
    rotation.width == half ? rotate_neighbours<true>(cos, sin, size, x) : rotate_neighbours<false>(cos, sin, size, x);
    return;
  }
  const int64_t other = rotation.width == half ? 0 : half;  // where the factors of the second half lie
  for (int64_t i = 0; i < half; ++i) {
    const float left = x[i], right = x[half + i];
    x[i] = left * cos[i] - right * sin[i];
    x[half + i] = right * cos[other + i] + left * sin[other + i];
  }
}

template <class T>
class Prepare {
 public:
  Prepare(const ParoPrepareParams& params, const Threads& threads)
      : params_(params),
        threads_(threads),
        shape_(params.shape),
        chunks_(ceil_div(shape_.length, kParoGroup)),
        pairs_(shape_.batch * shape_.num_kv_heads) {}

  void run() {
    Arena measure;
    plan(measure);
    Scratch scratch(measure.used());
    Arena arena(scratch.data());
    plan(arena);
    for_each_item(threads_, shape_.num_kv_heads, [&](int64_t head, int) { list_order(head); });
    if (sums_ != nullptr || mosts_ != nullptr) {
      for_each_item(threads_, pairs_ * chunks_, [&](int64_t item, int worker) { survey(item, worker); });
      for_each_item(threads_, pairs_, [&](int64_t pair, int) { combine(pair); });
    }
    const int64_t query_items = shape_.batch * shape_.num_heads * chunks_;
    for_each_item(threads_, query_items + pairs_ * chunks_, [&](int64_t item, int worker) {
      if (item < query_items) {
        make_queries(item / chunks_, item % chunks_, worker);
      } else {
        make_keys((item - query_items) / chunks_, (item - query_items) % chunks_, worker);
        make_values((item - query_items) / chunks_, (item - query_items) % chunks_, worker);
      }
    });
  }

 private:
  void plan(Arena& arena) {
    const int64_t width = shape_.code_dim();
    if (params_.k_mean != nullptr) sums_ = arena.take<float>(pairs_ * chunks_ * width);
    if (params_.v_scale != nullptr) {
      mosts_ = arena.take<uint32_t>(pairs_ * chunks_ * width);
      inverses_ = arena.take<float>(pairs_ * shape_.value_dim());
    }
    orders_ = arena.take<int32_t>(kParoOrders * shape_.length);
    blocks_ = arena.take_per_thread<float>(threads_.count, kParoGroup * width);
  }

  // The tokens of every position under the code of a head, unless an earlier head has it.
  void list_order(int64_t head) {
    const int64_t code = params_.permutation[head];
    for (int64_t other = 0; other < head; ++other) {
      if (params_.permutation[other] == code) return;
    }
    int32_t* order = orders_ + code * shape_.length;
    for (int64_t i = 0; i < shape_.length; ++i) {
      order[i] = static_cast<int32_t>(params_.grid.token(static_cast<int>(code), i));
    }
  }

  int64_t kept_of(int64_t chunk) const { return min(shape_.length - chunk * kParoGroup, kParoGroup); }

  // Of 64 tokens in their own order: the sum of the rotated keys, the greatest value of each channel.
  void survey(int64_t item, int worker) {
    const int64_t pair = item / chunks_, chunk = item % chunks_, width = shape_.code_dim();
    const int64_t batch = pair / shape_.num_kv_heads, head = pair % shape_.num_kv_heads;
    float* block = blocks_[worker];
    constexpr int kVectors = MostOf64::kVectors;
    if (sums_ != nullptr) {
      load_block(params_.k, batch, head, nullptr, chunk, true, block);
      for (int64_t first = 0; first < width; first += 64) {
        Vec sum[kVectors];
        for (Vec& lanes : sum) lanes = Vec(0.0f);
        for (int64_t i = 0; i < kept_of(chunk); ++i) {
          const float* x = block + i * width + first;
          for (int j = 0; j < kVectors; ++j) sum[j] = sum[j] + Vec::load(x + j * Vec::kLanes);
        }
        for (int j = 0; j < kVectors; ++j) sum[j].store(sums_ + item * width + first + j * Vec::kLanes);
      }
    }
    if (mosts_ != nullptr) {
      load_block(params_.v, batch, head, nullptr, chunk, false, block);
      for (int64_t first = 0; first < width; first += 64) {
        MostOf64 most;
        most.clear();
        for (int64_t i = 0; i < kept_of(chunk); ++i) most.raise_all(block + i * width + first);
        most.store(mosts_ + item * width + first);
      }
    }
  }

  void combine(int64_t pair) {
    const int64_t D = shape_.head_dim;
    if (sums_ != nullptr) {
      double total[kMostHeadDim] = {};
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        for (int64_t d = 0; d < D; ++d) total[d] += sums_[(pair * chunks_ + chunk) * shape_.code_dim() + d];
      }
      for (int64_t d = 0; d < D; ++d) {
        params_.k_mean[pair * D + d] = static_cast<float>(total[d] / static_cast<double>(shape_.length));
      }
    }
    if (mosts_ != nullptr) {
      for (int64_t d = 0; d < D; ++d) {
        uint32_t most = 0;
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
          const uint32_t other = mosts_[(pair * chunks_ + chunk) * shape_.code_dim() + d];
          most = other > most ? other : most;
        }
        const ParoScale found = paro_scale(most, params_.pv);
        params_.v_scale[pair * D + d] = found.scale;
        inverses_[pair * shape_.value_dim() + d] = found.inverse;
      }
      for (int64_t d = D; d < shape_.value_dim(); ++d) inverses_[pair * shape_.value_dim() + d] = 0.0f;
    }
  }

  const float* mean_of(int64_t pair) const {
    return params_.k_mean == nullptr ? nullptr : params_.k_mean + pair * shape_.head_dim;
  }

  const int32_t* order_of(int64_t kv_head) const { return orders_ + params_.permutation[kv_head] * shape_.length; }

  // Rows of 64 positions of an order, without one of 64 tokens, [64][Dq] padded by zeros.
  void load_block(const HeadsView& view, int64_t batch, int64_t head, const int32_t* order, int64_t chunk, bool rotates,
                  float* block) const {
    const int64_t D = shape_.head_dim, width = shape_.code_dim(), kept = kept_of(chunk);
    const T* rows = view.head<T>(batch, head);
    for (int64_t i = 0; i < kept; ++i) {
      const int64_t position = chunk * kParoGroup + i, token = order == nullptr ? position : order[position];
      float* x = block + i * width;
      load_row(rows + token * view.stride_row, D, x);
      if (rotates) rotate_row(params_.rotation, token, D, x);
      for (int64_t d = D; d < width; ++d) x[d] = 0.0f;
    }
    for (int64_t i = kept * width; i < kParoGroup * width; ++i) block[i] = 0.0f;
  }

  void store_rows(const float* block, const float* inverses, int64_t step, void* codes, int64_t first_row) const {
    const int64_t width = shape_.code_dim(), row_bytes = shape_.row_bytes(params_.qk);
    uint8_t* to = static_cast<uint8_t*>(codes) + first_row * row_bytes;
    for (int64_t i = 0; i < kParoGroup; ++i) {
      if (params_.qk == ParoFormat::kBf16) {
        store_bf16(block + i * width, reinterpret_cast<BFloat16*>(to + i * row_bytes));
      } else {
        make_row_codes(block + i * width, width, inverses[i * step], params_.qk, to + i * row_bytes);
      }
    }
  }
  void store_bf16(const float* x, BFloat16* to) const {
    for (int64_t d = 0; d < shape_.code_dim(); d += Vec::kLanes) Vec::load(x + d).store(to + d);
  }

  void make_queries(int64_t head_of_batch, int64_t chunk, int worker) {
    const int64_t D = shape_.head_dim, width = shape_.code_dim();
    const int64_t batch = head_of_batch / shape_.num_heads, head = head_of_batch % shape_.num_heads;
    const int64_t kv_head = head / shape_.group_size();
    float* block = blocks_[worker];
    load_block(params_.q, batch, head, order_of(kv_head), chunk, true, block);
    if (params_.mean_score != nullptr) {
      const float* mean = mean_of(batch * shape_.num_kv_heads + kv_head);
      float* score = params_.mean_score + head_of_batch * shape_.length + chunk * kParoGroup;
      for (int64_t i = 0; i < kept_of(chunk); ++i) score[i] = mean == nullptr ? 0.0f : dot(block + i * width, mean, D);
    }
    float inverses[kParoGroup];
    if (is_quantized(params_.qk)) {
      make_row_scales(block, params_.q_scale + head_of_batch * shape_.padded_length() + chunk * kParoGroup, inverses);
    }
    store_rows(block, inverses, 1, params_.q_codes, head_of_batch * shape_.padded_length() + chunk * kParoGroup);
  }

  // Scales of 64 rows; their maxima are turned so that 16 rows lie in lanes.
  void make_row_scales(const float* block, float* scales, float* inverses) const {
    const int64_t width = shape_.code_dim();
    uint32_t bits[kParoGroup];
    for (int64_t first = 0; first < kParoGroup; first += 16) {
#if defined(__AVX512F__)
      __m512i mosts[16];
#endif
      for (int64_t i = 0; i < 16; ++i) {
        MostOf64 most;
        most.clear();
        for (int64_t d = 0; d < width; d += 64) most.raise_all(block + (first + i) * width + d);
#if defined(__AVX512F__)
        mosts[i] = most.in_16_lanes();
      }
      transpose_16x16_dwords(mosts);
      for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) mosts[i] = _mm512_max_epu32(mosts[i], mosts[i + half]);
      }
      _mm512_storeu_si512(bits + first, mosts[0]);
#else
        bits[first + i] = most.total();
      }
#endif
    }
    for (int64_t i = 0; i < kParoGroup; ++i) {
      const ParoScale found = paro_scale(bits[i], params_.qk);
      scales[i] = found.scale;
      inverses[i] = found.inverse;
    }
  }

  static float dot(const float* a, const float* b, int64_t size) {
    Vec sum(0.0f);
    int64_t i = 0;
    for (; i + Vec::kLanes <= size; i += Vec::kLanes) sum = sum + Vec::load(a + i) * Vec::load(b + i);
    float lanes[Vec::kLanes], result = 0.0f;
    sum.store(lanes);
    for (int lane = 0; lane < Vec::kLanes; ++lane) result += lanes[lane];
    for (; i < size; ++i) result += a[i] * b[i];
    return result;
  }

  void make_keys(int64_t pair, int64_t chunk, int worker) {
    const int64_t batch = pair / shape_.num_kv_heads, head = pair % shape_.num_kv_heads;
    float* block = blocks_[worker];
    load_block(params_.k, batch, head, order_of(head), chunk, true, block);
    const uint32_t most = smooth_rows(mean_of(pair), kept_of(chunk), block);
    float inverse = 0.0f;
    if (is_quantized(params_.qk)) {
      const ParoScale found = paro_scale(most, params_.qk);
      params_.k_scale[pair * chunks_ + chunk] = found.scale;
      inverse = found.inverse;
    }
    store_rows(block, &inverse, 0, params_.k_codes, pair * shape_.padded_length() + chunk * kParoGroup);
  }

  // Subtracts the mean, if there is one; the greatest |x| as bits.
  uint32_t smooth_rows(const float* mean, int64_t num_rows, float* block) const {
    const int64_t D = shape_.head_dim, width = shape_.code_dim();
    float means[kMostHeadDim] = {};
    if (mean != nullptr) __builtin_memcpy(means, mean, static_cast<size_t>(D) * sizeof(float));
    MostOf64 most;
    most.clear();
    for (int64_t first = 0; first < width; first += 64) {
      for (int64_t i = 0; i < num_rows; ++i) {
        float* row = block + i * width + first;
        for (int j = 0; j < MostOf64::kVectors; ++j) {
          const Vec x = Vec::load(row + j * Vec::kLanes) - Vec::load(means + first + j * Vec::kLanes);
          x.store(row + j * Vec::kLanes);
          most.raise(j, x);
        }
      }
    }
    return most.total();
  }

  void make_values(int64_t pair, int64_t chunk, int worker) {
    const int64_t width = shape_.code_dim();
    const int64_t batch = pair / shape_.num_kv_heads, head = pair % shape_.num_kv_heads;
    float* block = blocks_[worker];
    load_block(params_.v, batch, head, order_of(head), chunk, false, block);
    const int64_t block_bytes = shape_.value_block_bytes(params_.pv);
    uint8_t* to = static_cast<uint8_t*>(params_.v_codes) + (pair * chunks_ + chunk) * block_bytes;
    if (params_.pv == ParoFormat::kBf16) {
      for (int64_t i = 0; i < kParoGroup; ++i)
        store_bf16(block + i * width, reinterpret_cast<BFloat16*>(to) + i * width);
      return;
    }
    const float* inverses = inverses_ + pair * shape_.value_dim();
    for (int64_t first = 0; first < shape_.value_dim(); first += kChannels) {
#if defined(__AVX512F__)
      if (params_.pv == ParoFormat::kInt8) {
        make_byte_lines(block + first, inverses + first, to + first * kParoGroup);
        continue;
      }
#endif
      uint32_t words[kChannels][kChannels];  // [4 positions][channel]
      switch (params_.pv) {
        case ParoFormat::kFp8:
          make_words(block + first, inverses + first, words, [](float x) -> uint32_t { return to_e4m3(x); });
          break;
        case ParoFormat::kInt4:
          make_words(block + first, inverses + first, words, [](float x) { return rounded_bits(x) & 15; });
          break;
        default:
          make_words(block + first, inverses + first, words, [](float x) { return rounded_bits(x) & 255; });
      }
      store_words(words, to + first * (block_bytes / shape_.value_dim()));
    }
  }

#if defined(__AVX512F__)
  // A line of the 8-bit codes of 64 positions for each of 16 channels.
  void make_byte_lines(const float* block, const float* inverses, uint8_t* to) const {
    const int64_t width = shape_.code_dim();
    const Vec factors = Vec::load(inverses);
    const __mmask16 used = _mm512_cmp_ps_mask(factors.v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    const __m512i turned = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i words[kChannels];
    for (int quad = 0; quad < kChannels; ++quad) {
      const float* x = block + quad * 4 * width;
      const __m512i packed = pack_lanes(
          rounded_lanes(Vec::load(x), factors), rounded_lanes(Vec::load(x + width), factors),
          rounded_lanes(Vec::load(x + 2 * width), factors), rounded_lanes(Vec::load(x + 3 * width), factors));
      words[quad] = _mm512_maskz_mov_epi32(used, _mm512_shuffle_epi8(packed, turned));
    }
    transpose_16x16_dwords(words);
    for (int i = 0; i < kChannels; ++i) _mm512_storeu_si512(to + i * kParoGroup, words[i]);
  }
#endif

  // Codes of 64 positions of 16 channels, four positions to a word.
  template <class Code>
  void make_words(const float* block, const float* inverses, uint32_t (&words)[kChannels][kChannels],
                  Code&& code) const {
    const int64_t width = shape_.code_dim();
    float factors[kChannels];
    uint32_t used[kChannels];  // 0 where all codes are: no number has an inverse, or one is not finite
    for (int i = 0; i < kChannels; ++i) {
      factors[i] = inverses[i];
      used[i] = inverses[i] == 0.0f ? 0 : ~0u;
    }
    for (int quad = 0; quad < kChannels; ++quad) {
      const float* x = block + quad * 4 * width;
      for (int i = 0; i < kChannels; ++i) {
        uint32_t word = code(x[i] * factors[i]);
        word |= code(x[width + i] * factors[i]) << 8;
        word |= code(x[2 * width + i] * factors[i]) << 16;
        word |= code(x[3 * width + i] * factors[i]) << 24;
        words[quad][i] = word & used[i];
      }
    }
  }
  // A line of 64 positions for each channel; 4-bit codes of the second half go into the high bits of the first.
  void store_words(uint32_t (&words)[kChannels][kChannels], uint8_t* to) const {
    const bool halves = params_.pv == ParoFormat::kInt4;
    const int quads = halves ? kChannels / 2 : kChannels;
    if (halves) {
      for (int quad = 0; quad < quads; ++quad) {
        for (int i = 0; i < kChannels; ++i) words[quad][i] |= words[quads + quad][i] << 4;
      }
    }
#if defined(__AVX512F__)
    __m512i block[kChannels];
    for (int i = 0; i < kChannels; ++i) block[i] = _mm512_loadu_si512(words[i]);
    transpose_16x16_dwords(block);
    for (int i = 0; i < kChannels; ++i) {
      _mm512_mask_storeu_epi32(to + i * quads * 4, static_cast<__mmask16>((1u << quads) - 1), block[i]);
    }
#else
    for (int i = 0; i < kChannels; ++i) {
      for (int quad = 0; quad < quads; ++quad) __builtin_memcpy(to + (i * quads + quad) * 4, &words[quad][i], 4);
    }
#endif
  }

  const ParoPrepareParams& params_;
  const Threads& threads_;
  const ParoShape& shape_;
  int64_t chunks_;                // of 64 tokens or positions
  int64_t pairs_;                 // (batch, key head)
  float* sums_ = nullptr;         // [pairs][chunks][Dq]
  uint32_t* mosts_ = nullptr;     // [pairs][chunks][Dq]
  float* inverses_ = nullptr;     // [pairs][Dv] of the values' scales
  int32_t* orders_ = nullptr;     // [6][N] token of every position, for the codes in use
  PiecePerThread<float> blocks_;  // [64][Dq]
};

}  // namespace

void paro_prepare(const ParoPrepareParams& params, const Threads& threads) {
  switch (params.dtype) {
    case DType::kFloat32:
      return Prepare<float>(params, threads).run();
    case DType::kBFloat16:
      return Prepare<BFloat16>(params, threads).run();
    case DType::kFloat16:
      return Prepare<Float16>(params, threads).run();
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
