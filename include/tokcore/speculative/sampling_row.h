// One row of logits on the CPU: block by block from memory, once for each question asked of it. Nothing of the row's
// length is kept.
#pragma once

#include <cmath>
#include <limits>

#include "tokcore/cpu/math.h"
#include "tokcore/cpu/row_softmax.h"
#include "tokcore/speculative/row_noise.h"
#include "tokcore/speculative/verify_tree.h"

namespace tokcore::cpu::TOKCORE_ISA {

using speculative::LogitsParams;
using speculative::Penalties;
using speculative::RowSummary;

inline constexpr int kDigitBits = 11;  // of the ranks that a histogram tells apart

// Of one worker.
struct RowScratch {
  alignas(64) float z[kRowBlock];  // logits that may be drawn; others, and what is beyond the row, -inf
  alignas(64) double weights[kRowBlock];
  RowNoise noise;
  uint64_t histogram[1 << kDigitBits];
};

template <class T>
class SamplingRow {
 public:
  SamplingRow(const LogitsParams& params, const VerifyTreeParams* tree, int64_t request, RowScratch& scratch)
      : p_(params),
        tree_(tree),
        request_(request),
        s_(scratch),
        bits_(speculative::weight_bits(params.vocab_size)),
        penalties_(speculative::penalties_of(params, request)) {}

  int weight_bits() const { return bits_; }
  const RowSummary& summary() const { return row_; }

  // ---- the distribution ---------------------------------------------------------------------------------------------

  // Reads row `node` down to what may be drawn of it; wants_mass: and the sums of weights.
  const RowSummary& open(int64_t node, bool wants_mass) {
    node_ = node;
    row_ = {};
    row_.lowest = -std::numeric_limits<float>::max();
    row_.highest = std::numeric_limits<float>::max();
    find_greatest();
    if (row_.status != speculative::kFine) return row_;
    const double temperature = speculative::setting_of(p_, request_, speculative::kTemperature);
    if (temperature == 0.0) {
      row_.lowest = row_.highest = row_.greatest;
      row_.mass = uint64_t{1} << bits_;  // of the first of the greatest alone
      return row_;
    }
    row_.slope = speculative::slope_of(temperature);
    keep_top_k();
    keep_top_p();
    keep_min_p();
    keep_typical();
    if (wants_mass) add_up();
    return row_;
  }
  // As open() left it, without reading the row.
  void reopen(int64_t node, const RowSummary& summary) {
    node_ = node;
    row_ = summary;
  }
  bool is_greedy() const { return row_.slope == 0.0; }

  uint64_t weight(int64_t token) const {
    if (is_greedy()) return token == row_.first_greatest ? row_.mass : 0;
    const float z = logit(token);
    if (!(z >= row_.lowest && z <= row_.highest)) return 0;
    return exact::to_integer(exact::scaled_exp2(speculative::log2_weight(z, row_.greatest, row_.slope), bits_));
  }
  float logit(int64_t token) const {
    if (p_.allowed_bits != nullptr && (allowed_words()[token / 32] >> token % 32 & 1) == 0) return -INFINITY;
    const float z = to_float(logits()[token]);
    return penalties_.active ? speculative::penalised(z, count_of(token), penalties_) : z;
  }

  // ---- drawing ------------------------------------------------------------------------------------------------------

  // The token of greatest logit plus noise; of equal ones the first.
  int64_t coupled_token(int64_t position) {
    speculative::NoisyTokens best(1);
    rank_with_noise(position, best);
    return best.token(0);
  }
  // Offers every token that may be drawn with log-probability plus noise, and may leave out those that come too late.
  void rank_with_noise(int64_t position, speculative::NoisyTokens& best) {
    if (is_greedy()) return best.offer(0.0, row_.first_greatest);
    const int64_t seed = p_.seeds[request_];
    for_each_block([&](int64_t first, int64_t count) {
      keep_interval(count);
      if (!any_left(count)) return;
      s_.noise.make(seed, speculative::Stream::kTokens, position, first);
      const Vec slope(static_cast<float>(row_.slope)), greatest(row_.greatest);
      s_.noise.offer_block(
          count, best, [&](int64_t i) { return exp2((Vec::load(s_.z + i) - greatest) * slope); },
          [&](int64_t i) {
            if (s_.z[i] == -INFINITY) return;
            const uint64_t noise = speculative::token_bits(seed, speculative::Stream::kTokens, first + i, position);
            best.offer(exact::add(speculative::log2_weight(s_.z[i], row_.greatest, row_.slope),
                                  speculative::gumbel_log2(noise)),
                       first + i);
          });
    });
  }

  // The first token at which the running sum of weights exceeds x < their sum. for_each_skipped(work) calls work with
  // the tokens that count nothing.
  template <class ForEachSkipped>
  int64_t draw_weight(uint64_t x, ForEachSkipped&& for_each_skipped) {
    if (is_greedy()) return row_.first_greatest;
    return draw(x, [&](int64_t first, int64_t count) {
      make_weights(count);
      for_each_skipped([&](int64_t token) {
        if (token >= first && token < first + count) s_.weights[token - first] = 0.0;
      });
    });
  }

  // ---- draft probabilities ------------------------------------------------------------------------------------------

  // The distribution as a verification will read it: 0 where its whole numbers would be 0.
  void write_draft(float* q) {
    const double mass = speculative::as_double(row_.mass), least = 1.0 / static_cast<double>(int64_t{1} << bits_);
    for_each_block([&](int64_t first, int64_t count) {
      if (is_greedy()) {
        for (int64_t i = 0; i < count; ++i) s_.weights[i] = speculative::as_double(weight(first + i));
      } else {
        make_weights(count);
      }
      for (int64_t i = 0; i < count; ++i) {
        const float share = static_cast<float>(s_.weights[i] / mass);
        q[first + i] = static_cast<double>(share) < least ? 0.0f : share;
      }
    });
  }
  // As rank_with_noise, of what write_draft wrote: draws from just these numbers.
  void rank_draft_with_noise(const float* q, speculative::Stream stream, int64_t position,
                             speculative::NoisyTokens& best) {
    const int64_t seed = p_.seeds[request_];
    for (int64_t first = 0; first < p_.vocab_size; first += kRowBlock) {
      const int64_t count = min(kRowBlock, p_.vocab_size - first);
      for (int64_t i = 0; i < round_up(count, Vec::kLanes); ++i) s_.z[i] = i < count ? q[first + i] : 0.0f;
      s_.noise.make(seed, stream, position, first);
      s_.noise.offer_block(
          count, best, [&](int64_t i) { return Vec::load(s_.z + i); },
          [&](int64_t i) {
            if (!(s_.z[i] > 0.0f)) return;
            const uint64_t noise = speculative::token_bits(seed, stream, first + i, position);
            best.offer(exact::add(exact::log2(static_cast<double>(s_.z[i])), speculative::gumbel_log2(noise)),
                       first + i);
          });
    }
  }

  // Their sum in whole numbers of 2^-bits; 0 if there is anything wrong with them.
  uint64_t draft_mass() const {
    constexpr double kTolerance = 1e-3;
    const float* q = drafts();
    const double unit = static_cast<double>(int64_t{1} << bits_);
    uint64_t sum = 0;
    bool good = true;
    for (int64_t v = 0; v < p_.vocab_size; ++v) {
      good &= q[v] >= 0.0f && q[v] <= 1.001f;
      sum += exact::to_integer(exact::mul(static_cast<double>(q[v] <= 1.001f ? q[v] : 0.0f), unit));
    }
    const double total = exact::mul(speculative::as_double(sum), 1.0 / unit);
    return good && total > 1.0 - kTolerance && total < 1.0 + kTolerance ? sum : 0;
  }
  uint64_t draft(int64_t token) const {
    return exact::to_integer(
        exact::mul(static_cast<double>(drafts()[token]), static_cast<double>(int64_t{1} << bits_)));
  }

  // Of relu(p - factor q) in whole numbers of 2^-bits.
  uint64_t residual(int64_t token, double factor, uint64_t draft_mass) const {
    const double p = speculative::as_double(weight(token)) / speculative::as_double(row_.mass);
    const double q = speculative::as_double(draft(token)) / speculative::as_double(draft_mass);
    return exact::to_integer(residual_of(p, q, factor));
  }
  uint64_t residual_mass(double factor, uint64_t draft_mass) {
    uint64_t sum = 0;
    for_each_block([&](int64_t first, int64_t count) {
      make_residuals(first, count, factor, draft_mass);
      for (int64_t i = 0; i < count; ++i) sum += exact::to_integer(s_.weights[i]);
    });
    return sum;
  }
  int64_t draw_residual(uint64_t x, double factor, uint64_t draft_mass) {
    return draw(x, [&](int64_t first, int64_t count) { make_residuals(first, count, factor, draft_mass); });
  }

 private:
  const T* logits() const {
    return static_cast<const T*>(p_.logits) + request_ * p_.stride_request + node_ * p_.stride_node;
  }
  const uint32_t* allowed_words() const {
    return p_.allowed_bits + (request_ * p_.num_nodes + node_) * ceil_div(p_.vocab_size, 32);
  }
  const float* drafts() const {
    return tree_->draft_probs + request_ * tree_->stride_draft_request + node_ * tree_->stride_draft_node;
  }
  // Calls work(token) for the tokens from this row's node up to the root, without the root's.
  template <class Work>
  void for_each_path_token(Work&& work) const {
    if (tree_ == nullptr) return;
    const int64_t tree = request_ * p_.num_nodes;
    for (int64_t node = node_; node > 0; node = tree_->parents[tree + node]) work(tree_->tree_tokens[tree + node]);
  }
  int64_t count_of(int64_t token) const {
    int64_t count = p_.token_counts == nullptr ? 0 : p_.token_counts[request_ * p_.vocab_size + token];
    for_each_path_token([&](int64_t on_path) { count += on_path == token ? 1 : 0; });
    return count;
  }

  // ---- blocks -------------------------------------------------------------------------------------------------------

  // work(first, count) with s_.z filled.
  template <class Work>
  void for_each_block(Work&& work) {
    for (int64_t first = 0; first < p_.vocab_size; first += kRowBlock) {
      const int64_t count = min(kRowBlock, p_.vocab_size - first);
      load(first, count);
      work(first, count);
    }
  }
  void load(int64_t first, int64_t count) {
    const T* from = logits() + first;
    const int64_t vectors = count / Vec::kLanes * Vec::kLanes;
    for (int64_t i = 0; i < vectors; i += Vec::kLanes) Vec::load(from + i).store(s_.z + i);
    for (int64_t i = vectors; i < count; ++i) s_.z[i] = to_float(from[i]);
    if (penalties_.active) {
      const int32_t* counts = p_.token_counts + request_ * p_.vocab_size + first;
      for (int64_t i = 0; p_.token_counts != nullptr && i < count; ++i) {
        s_.z[i] = speculative::penalised(s_.z[i], counts[i], penalties_);
      }
      for_each_path_token([&](int64_t token) {
        if (token < first || token >= first + count) return;
        s_.z[token - first] = speculative::penalised(to_float(logits()[token]), count_of(token), penalties_);
      });
    }
    if (p_.allowed_bits != nullptr) {
      const uint32_t* words = allowed_words() + first / 32;
      for (int64_t i = 0; i < count; ++i) s_.z[i] = (words[i / 32] >> i % 32 & 1) != 0 ? s_.z[i] : -INFINITY;
    }
    for (int64_t i = count; i < round_up(count, Vec::kLanes); ++i) s_.z[i] = -INFINITY;
  }
  // Logits outside the interval become -inf.
  void keep_interval(int64_t count) {
    const Vec lowest(row_.lowest), highest(row_.highest), none(-INFINITY);
    for (int64_t i = 0; i < count; i += Vec::kLanes) {
      const Vec z = Vec::load(s_.z + i);
      const Vec above = select(z < lowest, none, z);
      select(highest < z, none, above).store(s_.z + i);
    }
  }
  bool any_left(int64_t count) const {
    Vec greatest(-INFINITY);
    for (int64_t i = 0; i < count; i += Vec::kLanes) greatest = max(Vec::load(s_.z + i), greatest);
    return greatest_lane(greatest) > -INFINITY;
  }
  // s_.weights of what the interval keeps, for whole vectors of the block.
  void make_weights(int64_t count) {
    keep_interval(count);
    const double greatest = row_.greatest, slope = row_.slope;
    const float* z = s_.z;
    double* weights = s_.weights;
    const int bits = bits_;
    for (int64_t i = 0; i < count; ++i) {
      const double y = exact::mul(exact::add(static_cast<double>(z[i]), -greatest), slope);
      weights[i] = exact::scaled_exp2(y, bits);
    }
  }
  double residual_of(double p, double q, double factor) const {
    const double left = exact::add(p, -exact::mul(factor, q));
    const double kept = left > 0.0 ? left : 0.0;
    return exact::whole(exact::mul(kept, static_cast<double>(int64_t{1} << bits_)));
  }
  void make_residuals(int64_t first, int64_t count, double factor, uint64_t draft_mass) {
    if (is_greedy()) {
      for (int64_t i = 0; i < count; ++i) s_.weights[i] = speculative::as_double(weight(first + i));
    } else {
      make_weights(count);
    }
    const double mass = speculative::as_double(row_.mass), drafted = speculative::as_double(draft_mass);
    const double unit = static_cast<double>(int64_t{1} << bits_);
    const float* q = drafts() + first;
    double* weights = s_.weights;
    for (int64_t i = 0; i < count; ++i) {
      const double q_units = exact::whole(exact::mul(static_cast<double>(q[i]), unit));
      weights[i] = residual_of(weights[i] / mass, q_units / drafted, factor);
    }
  }
  template <class Make>
  int64_t draw(uint64_t x, Make&& make) {
    for (int64_t first = 0; first < p_.vocab_size; first += kRowBlock) {
      const int64_t count = min(kRowBlock, p_.vocab_size - first);
      load(first, count);
      make(first, count);
      uint64_t sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += exact::to_integer(s_.weights[i]);
      if (x >= sum) {
        x -= sum;
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t weight = exact::to_integer(s_.weights[i]);
        if (x < weight) return first + i;
        x -= weight;
      }
    }
    return -1;
  }

  // ---- passes that narrow the interval
  // -------------------------------------------------------------------------------

  void find_greatest() {
    bool bad = false, any_logit = false;
    float greatest = -INFINITY;
    for_each_block([&](int64_t first, int64_t count) {
      Vec block_greatest(-INFINITY);
      uint32_t found = 0;
      for (int64_t i = 0; i < count; i += Vec::kLanes) {
        const Vec z = Vec::load(s_.z + i);
        found |= not_less(z, Vec(INFINITY)).to_bits();  // a NaN too
        block_greatest = max(z, block_greatest);
      }
      bad |= found != 0;
      const float block = greatest_lane(block_greatest);
      if (block > greatest) {
        greatest = block;
        for (int64_t i = 0; i < count; ++i) {
          if (s_.z[i] == block) {
            row_.first_greatest = first + i;
            break;
          }
        }
      }
    });
    row_.greatest = greatest;
    // A NaN is reported even where the grammar hides it.
    if (p_.allowed_bits != nullptr) {
      const T* all = logits();
      for (int64_t v = 0; v < p_.vocab_size; ++v) {
        const float z = to_float(all[v]);
        bad |= !(z < INFINITY);
        any_logit |= z > -INFINITY;
      }
    }
    if (bad) {
      row_.status = speculative::kBadLogit;
    } else if (greatest == -INFINITY) {
      row_.status = any_logit ? speculative::kNothingAllowed : speculative::kNoLogit;
    }
  }

  // The greatest rank r such that the elements of rank r or more weigh at least need(all together); 0 if they never do.
  // rank_and_weight(i, &rank, &weight) of an element of the block; weight 0: it does not count.
  template <class Prepare, class RankAndWeight, class Need>
  uint32_t select_rank(Prepare&& prepare, RankAndWeight&& rank_and_weight, Need&& need) {
    uint32_t prefix = 0;
    uint64_t above = 0, needed = 0;
    for (int shift = 32 - kDigitBits, digit_bits = kDigitBits;;) {
      for (uint64_t& entry : s_.histogram) entry = 0;
      for_each_block([&](int64_t, int64_t count) {
        prepare(count);
        for (int64_t i = 0; i < count; ++i) {
          uint32_t rank;
          uint64_t weight;
          rank_and_weight(i, &rank, &weight);
          if (shift + digit_bits < 32 && (rank >> (shift + digit_bits)) != prefix) continue;
          s_.histogram[rank >> shift & ((1u << digit_bits) - 1)] += weight;
        }
      });
      if (shift == 32 - kDigitBits) {
        uint64_t all = 0;
        for (const uint64_t entry : s_.histogram) all += entry;
        needed = need(all);
        if (needed > all) return 0;
      }
      int digit = (1 << digit_bits) - 1;
      for (; above + s_.histogram[digit] < needed; --digit) above += s_.histogram[digit];
      prefix = prefix << digit_bits | static_cast<uint32_t>(digit);
      if (shift == 0) return prefix;
      digit_bits = shift < kDigitBits ? shift : kDigitBits;
      shift -= digit_bits;
    }
  }

  void keep_top_k() {
    const double k = speculative::setting_of(p_, request_, speculative::kTopK);
    if (k < 1.0 || k >= static_cast<double>(p_.vocab_size)) return;
    const uint32_t rank = select_rank([&](int64_t count) { keep_interval(count); },
                                      [&](int64_t i, uint32_t* rank, uint64_t* weight) {
                                        *rank = speculative::ordered_bits(s_.z[i]);
                                        *weight = s_.z[i] > -INFINITY ? 1 : 0;
                                      },
                                      [&](uint64_t) { return static_cast<uint64_t>(k); });
    if (rank != 0) row_.lowest = speculative::value_of_ordered(rank);
  }
  void keep_top_p() {
    const double share = speculative::setting_of(p_, request_, speculative::kTopP);
    if (share >= 1.0) return;
    const uint32_t rank = select_rank([&](int64_t count) { make_weights(count); },
                                      [&](int64_t i, uint32_t* rank, uint64_t* weight) {
                                        *rank = speculative::ordered_bits(s_.z[i]);
                                        *weight = exact::to_integer(s_.weights[i]);
                                      },
                                      [&](uint64_t all) { return speculative::share_of(all, share); });
    row_.lowest = speculative::value_of_ordered(rank);
  }
  void keep_min_p() {
    const double share = speculative::setting_of(p_, request_, speculative::kMinP);
    if (share <= 0.0) return;
    const double least = exact::mul(share, static_cast<double>(int64_t{1} << bits_));
    float lowest = row_.greatest;
    for_each_block([&](int64_t, int64_t count) {
      make_weights(count);
      for (int64_t i = 0; i < count; ++i) {
        if (s_.z[i] > -INFINITY && s_.weights[i] >= least && s_.z[i] < lowest) lowest = s_.z[i];
      }
    });
    row_.lowest = lowest;
  }
  void keep_typical() {
    const double share = speculative::setting_of(p_, request_, speculative::kTypicalMass);
    if (share >= 1.0) return;
    add_up();
    const double mean = speculative::mean_of(row_);
    const auto rank_of = [&](float z) {
      return speculative::typical_rank(speculative::log2_weight(z, row_.greatest, row_.slope), mean);
    };
    const uint32_t least = select_rank([&](int64_t count) { make_weights(count); },
                                       [&](int64_t i, uint32_t* rank, uint64_t* weight) {
                                         *weight = exact::to_integer(s_.weights[i]);
                                         *rank = *weight != 0 ? rank_of(s_.z[i]) : 0;
                                       },
                                       [&](uint64_t all) { return speculative::share_of(all, share); });
    float lowest = INFINITY, highest = -INFINITY;
    for_each_block([&](int64_t, int64_t count) {
      make_weights(count);
      for (int64_t i = 0; i < count; ++i) {
        if (s_.weights[i] == 0.0 || rank_of(s_.z[i]) < least) continue;
        lowest = s_.z[i] < lowest ? s_.z[i] : lowest;
        highest = s_.z[i] > highest ? s_.z[i] : highest;
      }
    });
    row_.lowest = lowest;
    row_.highest = highest;
  }

  void add_up() {
    uint64_t mass = 0, first = 0, second = 0;
    for_each_block([&](int64_t, int64_t count) {
      make_weights(count);
      const double greatest = row_.greatest, slope = row_.slope;
      for (int64_t i = 0; i < count; ++i) {
        const double w = s_.weights[i];
        const double y = exact::mul(exact::add(static_cast<double>(s_.z[i]), -greatest), slope);
        const double distance = y > -70.0 ? -y : 70.0;
        mass += exact::to_integer(w);
        first += exact::to_integer(exact::mul(w, distance));
        second += exact::to_integer(exact::mul(exact::mul(w, distance), distance));
      }
    });
    row_.mass = mass;
    row_.first = first;
    row_.second = second;
  }

  const LogitsParams& p_;
  const VerifyTreeParams* tree_;
  int64_t request_, node_ = 0;
  RowScratch& s_;
  int bits_;
  Penalties penalties_;
  RowSummary row_ = {};
};

}  // namespace tokcore::cpu::TOKCORE_ISA
