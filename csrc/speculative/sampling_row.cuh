// One row of logits on CUDA: a block reads it again for each question asked of it. The same distribution, noise and
// draws as on the CPU (tokcore/speculative/sampling_row.h), bit for bit: sums are of whole numbers, so that the order
// in which threads add does not matter. All threads of the block call every function together and get the same answer.
#pragma once

#include "tokcore/cuda/element.cuh"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/speculative/noise.h"
#include "tokcore/speculative/verify_tree.h"

namespace tokcore::speculative {

inline constexpr unsigned kRowThreads = 256;  // each with up to 255 registers: with 168 the walk spills
inline constexpr unsigned kRowWarps = kRowThreads / 32;
inline constexpr int kDigitBits = 11;  // of the ranks that a histogram tells apart

// Shared memory of a block.
struct RowShared {
  unsigned long long histogram[1 << kDigitBits];
  unsigned long long partial[kRowWarps];
};

// Over all threads of the block; every thread gets the result.
template <class Combine>
TOKCORE_DEVICE unsigned long long combine_block(RowShared& shared, unsigned long long value, Combine combine) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(cuda::kAllLanes, value, distance));
  }
  if (threadIdx.x % 32 == 0) shared.partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared.partial[0];
#pragma unroll 1
  for (unsigned warp = 1; warp < kRowWarps; ++warp) value = combine(value, shared.partial[warp]);
  __syncthreads();
  return value;
}
TOKCORE_DEVICE unsigned long long block_sum(RowShared& shared, unsigned long long value) {
  return combine_block(shared, value, [](unsigned long long a, unsigned long long b) { return a + b; });
}
TOKCORE_DEVICE unsigned long long block_max(RowShared& shared, unsigned long long value) {
  return combine_block(shared, value, [](unsigned long long a, unsigned long long b) { return a > b ? a : b; });
}
TOKCORE_DEVICE unsigned long long block_min(RowShared& shared, unsigned long long value) {
  return combine_block(shared, value, [](unsigned long long a, unsigned long long b) { return a < b ? a : b; });
}

// A token with its place in an order by noise; as it stands, before all of them.
struct NoisyToken {
  unsigned long long rank = ~0ull;  // of the score, as whole numbers order
  int64_t token = -1;
};

template <class T>
class DeviceRow {
 public:
  TOKCORE_DEVICE DeviceRow(const LogitsParams& params, const VerifyTreeParams* tree, int64_t request, RowShared& shared)
      : p_(params),
        tree_(tree),
        request_(request),
        s_(shared),
        bits_(speculative::weight_bits(params.vocab_size)),
        penalties_(penalties_of(params, request)) {}

  TOKCORE_DEVICE int weight_bits() const { return bits_; }
  TOKCORE_DEVICE const RowSummary& summary() const { return row_; }

  // ---- the distribution ---------------------------------------------------------------------------------------------

  TOKCORE_DEVICE const RowSummary& open(int64_t node, bool wants_mass) {
    node_ = node;
    row_ = {};
    row_.lowest = -3.40282347e38f;
    row_.highest = 3.40282347e38f;
    find_greatest();
    if (row_.status != kFine) return row_;
    const double temperature = setting_of(p_, request_, kTemperature);
    if (temperature == 0.0) {
      row_.lowest = row_.highest = row_.greatest;
      row_.mass = uint64_t{1} << bits_;
      return row_;
    }
    row_.slope = slope_of(temperature);
    keep_top_k();
    keep_top_p();
    keep_min_p();
    keep_typical();
    if (wants_mass) add_up();
    return row_;
  }
  TOKCORE_DEVICE void reopen(int64_t node, const RowSummary& summary) {
    node_ = node;
    row_ = summary;
  }
  TOKCORE_DEVICE bool is_greedy() const { return row_.slope == 0.0; }

  TOKCORE_DEVICE uint64_t weight(int64_t token) const {
    if (is_greedy()) return token == row_.first_greatest ? row_.mass : 0;
    const float z = logit(token);
    return is_kept(z) ? weight_of(z) : 0;
  }
  TOKCORE_DEVICE float logit(int64_t token) const {
    if (p_.allowed_bits != nullptr && (allowed_words()[token / 32] >> token % 32 & 1) == 0) return -INFINITY;
    const float z = cuda::to_float(logits()[token]);
    return penalties_.active ? penalised(z, count_of(token), penalties_) : z;
  }

  // ---- drawing ------------------------------------------------------------------------------------------------------

  TOKCORE_DEVICE int64_t coupled_token(int64_t position) {
    if (is_greedy()) return row_.first_greatest;
    return next_with_noise(NoisyToken{}, position).token;
  }
  // The token of greatest log-probability plus noise among those that come after `before`: of lower score, or of the
  // same score and a higher number. Token -1: none.
  TOKCORE_DEVICE NoisyToken next_with_noise(const NoisyToken& before, int64_t position) {
    if (is_greedy()) return {0, before.token < 0 ? row_.first_greatest : -1};
    const float slope = static_cast<float>(row_.slope);
    return next_noisy(
        before, Stream::kTokens, position, [&](int64_t token) { return logit(token); },
        [&](float z) { return is_kept(z); }, [&](float z) { return exp2f((z - row_.greatest) * slope); },
        [&](float z) { return log2_weight(z, row_.greatest, row_.slope); });
  }

  template <class ForEachSkipped>
  TOKCORE_DEVICE int64_t draw_weight(uint64_t x, ForEachSkipped&& for_each_skipped) {
    if (is_greedy()) return row_.first_greatest;
    return draw(x, [&](int64_t token) {
      bool skipped = false;
      for_each_skipped([&](int64_t other) { skipped |= other == token; });
      return skipped ? 0 : weight(token);
    });
  }

  // ---- draft probabilities ------------------------------------------------------------------------------------------

  // As on the CPU.
  TOKCORE_DEVICE void write_draft(float* q) {
    const double mass = as_double(row_.mass), least = 1.0 / unit();
    for_each_token([&](int64_t v) {
      const float share = static_cast<float>(as_double(weight(v)) / mass);
      q[v] = static_cast<double>(share) < least ? 0.0f : share;
    });
    __syncthreads();
  }
  TOKCORE_DEVICE NoisyToken next_draft_with_noise(const float* q, const NoisyToken& before, Stream stream,
                                                  int64_t position) {
    return next_noisy(
        before, stream, position, [&](int64_t token) { return q[token]; }, [](float share) { return share > 0.0f; },
        [](float share) { return share; }, [](float share) { return exact::log2(static_cast<double>(share)); });
  }

  TOKCORE_DEVICE uint64_t draft_mass() {
    constexpr double kTolerance = 1e-3;
    const float* q = drafts();
    uint64_t sum = 0;
    bool bad = false;
    for_each_token([&](int64_t v) {
      bad |= !(q[v] >= 0.0f && q[v] <= 1.001f);
      sum += q[v] <= 1.001f ? draft(v) : 0;
    });
    sum = block_sum(s_, sum);
    bad = block_max(s_, bad) != 0;
    const double total = exact::mul(as_double(sum), 1.0 / unit());
    return !bad && total > 1.0 - kTolerance && total < 1.0 + kTolerance ? sum : 0;
  }
  TOKCORE_DEVICE uint64_t draft(int64_t token) const {
    return exact::to_integer(exact::mul(static_cast<double>(drafts()[token]), unit()));
  }
  TOKCORE_DEVICE uint64_t residual(int64_t token, double factor, uint64_t draft_mass) const {
    const double p = as_double(weight(token)) / as_double(row_.mass);
    const double q = as_double(draft(token)) / as_double(draft_mass);
    const double left = exact::add(p, -exact::mul(factor, q));
    return exact::to_integer(exact::whole(exact::mul(left > 0.0 ? left : 0.0, unit())));
  }
  TOKCORE_DEVICE uint64_t residual_mass(double factor, uint64_t draft_mass) {
    uint64_t sum = 0;
    for_each_token([&](int64_t v) { sum += residual(v, factor, draft_mass); });
    return block_sum(s_, sum);
  }
  TOKCORE_DEVICE int64_t draw_residual(uint64_t x, double factor, uint64_t draft_mass) {
    return draw(x, [&](int64_t token) { return residual(token, factor, draft_mass); });
  }

 private:
  TOKCORE_DEVICE const T* logits() const {
    return static_cast<const T*>(p_.logits) + request_ * p_.stride_request + node_ * p_.stride_node;
  }
  TOKCORE_DEVICE const uint32_t* allowed_words() const {
    return p_.allowed_bits + (request_ * p_.num_nodes + node_) * ceil_div(p_.vocab_size, 32);
  }
  TOKCORE_DEVICE const float* drafts() const {
    return tree_->draft_probs + request_ * tree_->stride_draft_request + node_ * tree_->stride_draft_node;
  }
  TOKCORE_DEVICE int64_t count_of(int64_t token) const {
    int64_t count = p_.token_counts == nullptr ? 0 : p_.token_counts[request_ * p_.vocab_size + token];
    if (tree_ == nullptr) return count;
    const int64_t tree = request_ * p_.num_nodes;
#pragma unroll 1
    for (int64_t node = node_; node > 0; node = tree_->parents[tree + node]) {
      count += tree_->tree_tokens[tree + node] == token ? 1 : 0;
    }
    return count;
  }
  TOKCORE_DEVICE double unit() const { return static_cast<double>(int64_t{1} << bits_); }
  TOKCORE_DEVICE bool is_kept(float z) const { return z >= row_.lowest && z <= row_.highest; }
  TOKCORE_DEVICE uint64_t weight_of(float z) const {
    return exact::to_integer(exact::scaled_exp2(log2_weight(z, row_.greatest, row_.slope), bits_));
  }
  static TOKCORE_DEVICE unsigned long long ordered_bits_of(double value) {
    const int64_t bits = exact::bits_of(exact::add(value, 0.0));
    return bits < 0 ? ~static_cast<unsigned long long>(bits) : static_cast<unsigned long long>(bits) | (1ull << 63);
  }

  // ---- the block ----------------------------------------------------------------------------------------------------

  // A thread takes pairs of tokens, which share their random words.
  template <class Value, class IsThere, class Weight, class Log2>
  TOKCORE_DEVICE NoisyToken next_noisy(const NoisyToken& before, Stream stream, int64_t position, Value value,
                                       IsThere is_there, Weight weight_of_value, Log2 log2_of_value) {
    const int64_t seed = p_.seeds[request_];
    double best = -INFINITY;
    int64_t best_token = -1;
    float bar = 0.0f;
#pragma unroll 1
    for (int64_t first = 2 * int64_t{threadIdx.x}; first < p_.vocab_size; first += 2 * kRowThreads) {
      const bool has_second = first + 1 < p_.vocab_size;
      const float pair[2] = {value(first), value(has_second ? first + 1 : first)};
      const bool there[2] = {is_there(pair[0]), has_second && is_there(pair[1])};
      if (!there[0] && !there[1]) continue;
      const PhiloxWords words = random_words(seed, stream, first >> 1, position);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!there[i]) continue;
        // -log2(1 - x) >= x log2(e) bounds the score from above: nearly all tokens are out without a logarithm.
        const uint32_t high = words.word[2 * i];
        const float least = static_cast<float>(static_cast<int32_t>(high >> 1)) * 0x1.fffffp-32f;
        if (weight_of_value(pair[i]) < least * bar) continue;
        const double score = exact::add(log2_of_value(pair[i]), gumbel_log2(join_words(high, words.word[2 * i + 1])));
        if (!(score > best)) continue;
        const unsigned long long rank = ordered_bits_of(score);
        if (rank > before.rank || (rank == before.rank && first + i <= before.token)) continue;
        best = score;
        best_token = first + i;
        bar = 0.999f * exp2f(static_cast<float>(best) + 0.52876f);
      }
    }
    const unsigned long long rank = best_token < 0 ? 0 : ordered_bits_of(best);
    const unsigned long long greatest = block_max(s_, rank);
    return {greatest, static_cast<int64_t>(block_min(s_, rank == greatest && best_token >= 0 ? best_token : ~0ull))};
  }

  template <class Work>
  TOKCORE_DEVICE void for_each_token(Work&& work) const {
#pragma unroll 1
    for (int64_t v = threadIdx.x; v < p_.vocab_size; v += kRowThreads) work(v);
  }
  // Each thread adds up a stretch of the row; the one whose stretch holds x finds the token in it.
  template <class Weight>
  TOKCORE_DEVICE int64_t draw(uint64_t x, Weight&& weight_at) {
    const int64_t stretch = ceil_div(p_.vocab_size, kRowThreads);
    const int64_t begin = min(threadIdx.x * stretch, p_.vocab_size), end = min(begin + stretch, p_.vocab_size);
    uint64_t sum = 0;
#pragma unroll 1
    for (int64_t v = begin; v < end; ++v) sum += weight_at(v);
    // The sum of the stretches before.
    unsigned long long before = sum;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (unsigned distance = 1; distance < 32; distance *= 2) {
      const unsigned long long other = __shfl_up_sync(cuda::kAllLanes, before, distance);
      if (lane >= distance) before += other;
    }
    if (lane == 31) s_.partial[warp] = before;
    __syncthreads();
#pragma unroll 1
    for (unsigned i = 0; i < warp; ++i) before += s_.partial[i];
    before -= sum;
    __syncthreads();
    int64_t found = -1;
    if (x >= before && x - before < sum) {
      uint64_t left = x - before;
#pragma unroll 1
      for (int64_t v = begin; v < end && found < 0; ++v) {
        const uint64_t weight = weight_at(v);
        if (left < weight) found = v;
        left -= weight;
      }
    }
    return static_cast<int64_t>(block_min(s_, static_cast<unsigned long long>(found)));
  }

  // ---- passes that narrow the interval
  // -------------------------------------------------------------------------------

  TOKCORE_DEVICE void find_greatest() {
    bool bad = false, any_logit = false;
    uint32_t greatest = 0;
    int64_t first = -1;
    for_each_token([&](int64_t v) {
      const float raw = cuda::to_float(logits()[v]), z = logit(v);
      bad |= !(raw < INFINITY) || !(z < INFINITY);
      any_logit |= raw > -INFINITY;
      if (!(z > -INFINITY)) return;
      const uint32_t rank = ordered_bits(z);
      if (rank > greatest) {
        greatest = rank;
        first = v;
      }
    });
    const uint32_t most = static_cast<uint32_t>(block_max(s_, greatest));
    const uint64_t least = block_min(s_, greatest == most && first >= 0 ? first : ~0ull);
    const uint64_t flags = block_max(s_, bad ? 2 : any_logit ? 1 : 0);
    if (flags >= 2) {
      row_.status = kBadLogit;
    } else if (most == 0) {
      row_.status = flags == 1 && p_.allowed_bits != nullptr ? kNothingAllowed : kNoLogit;
    }
    row_.greatest = most == 0 ? -INFINITY : value_of_ordered(most);
    row_.first_greatest = static_cast<int64_t>(least);
  }

  // As on the CPU; rank_and_weight(z, &rank, &weight) of a logit that is kept.
  template <class RankAndWeight, class Need>
  TOKCORE_DEVICE uint32_t select_rank(RankAndWeight&& rank_and_weight, Need&& need) {
    uint32_t prefix = 0;
    unsigned long long above = 0, needed = 0;
#pragma unroll 1
    for (int shift = 32 - kDigitBits, digit_bits = kDigitBits;;) {
#pragma unroll 1
      for (unsigned i = threadIdx.x; i < 1u << kDigitBits; i += kRowThreads) s_.histogram[i] = 0;
      __syncthreads();
      for_each_token([&](int64_t v) {
        const float z = logit(v);
        if (!is_kept(z)) return;
        uint32_t rank;
        uint64_t weight;
        rank_and_weight(z, &rank, &weight);
        if (weight == 0 || (shift + digit_bits < 32 && (rank >> (shift + digit_bits)) != prefix)) return;
        atomicAdd(&s_.histogram[rank >> shift & ((1u << digit_bits) - 1)], static_cast<unsigned long long>(weight));
      });
      __syncthreads();
      if (shift == 32 - kDigitBits) {
        unsigned long long all = 0;
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < 1u << kDigitBits; i += kRowThreads) all += s_.histogram[i];
        all = block_sum(s_, all);
        needed = need(all);
        if (needed > all) return 0;
      }
      int digit = (1 << digit_bits) - 1;
#pragma unroll 1
      for (; above + s_.histogram[digit] < needed; --digit) above += s_.histogram[digit];
      prefix = prefix << digit_bits | static_cast<uint32_t>(digit);
      __syncthreads();
      if (shift == 0) return prefix;
      digit_bits = shift < kDigitBits ? shift : kDigitBits;
      shift -= digit_bits;
    }
  }

  TOKCORE_DEVICE void keep_top_k() {
    const double k = setting_of(p_, request_, kTopK);
    if (k < 1.0 || k >= static_cast<double>(p_.vocab_size)) return;
    const uint32_t least = select_rank(
        [&](float z, uint32_t* rank, uint64_t* weight) {
          *rank = ordered_bits(z);
          *weight = 1;
        },
        [&](uint64_t) { return static_cast<uint64_t>(k); });
    if (least != 0) row_.lowest = value_of_ordered(least);
  }
  TOKCORE_DEVICE void keep_top_p() {
    const double share = setting_of(p_, request_, kTopP);
    if (share >= 1.0) return;
    row_.lowest = value_of_ordered(select_rank(
        [&](float z, uint32_t* rank, uint64_t* weight) {
          *rank = ordered_bits(z);
          *weight = weight_of(z);
        },
        [&](uint64_t all) { return share_of(all, share); }));
  }
  TOKCORE_DEVICE void keep_min_p() {
    const double share = setting_of(p_, request_, kMinP);
    if (share <= 0.0) return;
    const double least = exact::mul(share, unit());
    uint32_t lowest = ordered_bits(row_.greatest);
    for_each_token([&](int64_t v) {
      const float z = logit(v);
      if (!is_kept(z) || as_double(weight_of(z)) < least) return;
      const uint32_t rank = ordered_bits(z);
      lowest = rank < lowest ? rank : lowest;
    });
    row_.lowest = value_of_ordered(static_cast<uint32_t>(block_min(s_, lowest)));
  }
  TOKCORE_DEVICE void keep_typical() {
    const double share = setting_of(p_, request_, kTypicalMass);
    if (share >= 1.0) return;
    add_up();
    const double mean = mean_of(row_);
    const auto rank_of = [&](float z) { return typical_rank(log2_weight(z, row_.greatest, row_.slope), mean); };
    const uint32_t least = select_rank(
        [&](float z, uint32_t* rank, uint64_t* weight) {
          *weight = weight_of(z);
          *rank = rank_of(z);
        },
        [&](uint64_t all) { return share_of(all, share); });
    uint32_t lowest = 0xffffffffu, highest = 0;
    for_each_token([&](int64_t v) {
      const float z = logit(v);
      if (!is_kept(z) || weight_of(z) == 0 || rank_of(z) < least) return;
      const uint32_t rank = ordered_bits(z);
      lowest = rank < lowest ? rank : lowest;
      highest = rank > highest ? rank : highest;
    });
    const uint32_t from = static_cast<uint32_t>(block_min(s_, lowest)),
                   to = static_cast<uint32_t>(block_max(s_, highest));
    row_.lowest = value_of_ordered(from);
    row_.highest = value_of_ordered(to);
  }

  TOKCORE_DEVICE void add_up() {
    uint64_t mass = 0, first = 0, second = 0;
    for_each_token([&](int64_t v) {
      const float z = logit(v);
      if (!is_kept(z)) return;
      const double y = log2_weight(z, row_.greatest, row_.slope), w = exact::scaled_exp2(y, bits_);
      const double distance = y > -70.0 ? -y : 70.0;
      mass += exact::to_integer(w);
      first += exact::to_integer(exact::mul(w, distance));
      second += exact::to_integer(exact::mul(exact::mul(w, distance), distance));
    });
    row_.mass = block_sum(s_, mass);
    row_.first = block_sum(s_, first);
    row_.second = block_sum(s_, second);
  }

  const LogitsParams& p_;
  const VerifyTreeParams* tree_;
  int64_t request_, node_ = 0;
  RowShared& s_;
  int bits_;
  Penalties penalties_;
  RowSummary row_ = {};
};

}  // namespace tokcore::speculative
