// What sample and verify_tree_sample share: rows of logits, the options that turn a row into a distribution, and what a
// single logit becomes. Every backend follows this file bit for bit.
//
// A row's distribution: logits in fp32; penalties; tokens that the grammar forbids removed; then, in this order and
// each on what the ones before left, top-k, top-p, min-p and typical mass. Each of them keeps an interval of logits,
// ties with its ends included, so that all together keep [lowest, highest]. What is left has weights 2^((z - greatest)
// slope), slope = log2(e) / temperature, as whole numbers of which the greatest is 2^bits.
#pragma once

#include "tokcore/common/dtype.h"
#include "tokcore/common/exact_math.h"
#include "tokcore/common/math.h"

namespace tokcore::speculative {

// Columns of per_request.
enum Setting {
  kTemperature,  // >= 0; 0: the greatest logit alone, of equal ones the first
  kTopK,         // >= 0; 0: all
  kTopP,         // in (0, 1]
  kMinP,         // in [0, 1]
  kTypicalMass,  // in (0, 1]
  kRepetition,   // > 0: logits of tokens with a count, divided by it where positive, multiplied where not
  kPresence,     // subtracted from logits of tokens with a count
  kFrequency,    // subtracted once a count
  kNumSettings,
};

// What can be wrong with a request; kept in its status beside the node it was found at.
enum Status : int32_t {
  kFine,
  kBadLogit,                               // NaN or +inf
  kNoLogit,                                // all -inf
  kNothingAllowed,                         // by the grammar, of the logits above -inf
  kBadSetting,                             // kBadSetting + s: setting s of per_request is out of its range
  kBadDraft = kBadSetting + kNumSettings,  // draft probabilities below 0, not finite, or whose sum is not 1
  kDuplicateSibling,
  kImpossibleDraft,  // a child that its draft probabilities cannot draw
  kBadLink,
  kBadToken,  // outside [0, V)
};

struct LogitsParams {
  DType dtype;
  const void* logits;                   // [B, N, V]; N = 1 in sample
  int64_t stride_request, stride_node;  // elements
  int64_t num_requests, num_nodes, vocab_size;
  const int64_t* seeds;           // [B]
  const int64_t* positions;       // [B]: of the token to be drawn from row 0
  double settings[kNumSettings];  // of all requests, unless there is per_request
  const double* per_request;      // [B, 8] or null
  const int32_t* token_counts;    // [B, V] or null
  const uint32_t* allowed_bits;   // [B, N, ceil(V/32)]: token v is bit v % 32 of word v / 32; or null
  int32_t* status;                // [B, 2]: Status, node
};

// What a row has come to.
struct RowSummary {
  int32_t status;
  float greatest;                // of the logits that may be drawn before top-k and so on
  float lowest, highest;         // the logits that may be drawn
  int64_t first_greatest;        // the first token with the greatest logit
  double slope;                  // log2(e) / temperature
  uint64_t mass, first, second;  // sums of w, w y and w y^2 with y = (greatest - z) slope
};

TOKCORE_SHARED_FUNCTION int weight_bits(int64_t vocab_size) {
  int bits = 62;
  for (int64_t reached = 1; reached < vocab_size && bits > 0; reached *= 2) --bits;
  return bits < 50 ? bits : 50;
}

TOKCORE_SHARED_FUNCTION double setting_of(const LogitsParams& params, int64_t request, Setting setting) {
  return params.per_request == nullptr ? params.settings[setting]
                                       : params.per_request[request * kNumSettings + setting];
}

// Fails on NaN too.
TOKCORE_SHARED_FUNCTION bool setting_is_valid(Setting setting, double value) {
  constexpr double kMost = 1e30;
  switch (setting) {
    case kTemperature:
    case kTopK:
      return value >= 0.0 && value <= kMost;
    case kTopP:
    case kTypicalMass:
      return value > 0.0 && value <= 1.0;
    case kMinP:
      return value >= 0.0 && value <= 1.0;
    case kRepetition:
      return value > 0.0 && value <= kMost;
    default:
      return value >= -kMost && value <= kMost;
  }
}
TOKCORE_SHARED_FUNCTION int32_t check_settings(const LogitsParams& params, int64_t request) {
  for (int setting = 0; setting < kNumSettings; ++setting) {
    const Setting name = static_cast<Setting>(setting);
    if (!setting_is_valid(name, setting_of(params, request, name))) return kBadSetting + setting;
  }
  return kFine;
}

struct Penalties {
  float repetition, presence, frequency;
  bool active;
};
TOKCORE_SHARED_FUNCTION Penalties penalties_of(const LogitsParams& params, int64_t request) {
  Penalties p = {static_cast<float>(setting_of(params, request, kRepetition)),
                 static_cast<float>(setting_of(params, request, kPresence)),
                 static_cast<float>(setting_of(params, request, kFrequency)), false};
  p.active = p.repetition != 1.0f || p.presence != 0.0f || p.frequency != 0.0f;
  return p;
}
TOKCORE_SHARED_FUNCTION float penalised(float z, int64_t count, const Penalties& p) {
  if (count <= 0) return z;
#if defined(__CUDA_ARCH__)
  const float divided = __fdiv_rn(z, p.repetition);
#else
  const float divided = z / p.repetition;
#endif
  const float repeated = z > 0.0f ? divided : exact::mul(z, p.repetition);
  const float frequent = exact::add(repeated, -exact::mul(p.frequency, static_cast<float>(count)));
  return exact::add(frequent, -p.presence);
}

TOKCORE_SHARED_FUNCTION double slope_of(double temperature) {
  constexpr double kSteepest = 1e30;  // beyond it products with 0 would be NaN
  const double slope = 1.4426950408889634 / temperature;
  return slope < kSteepest ? slope : kSteepest;
}
// (z - greatest) slope: 0 or less.
TOKCORE_SHARED_FUNCTION double log2_weight(float z, float greatest, double slope) {
  return exact::mul(exact::add(static_cast<double>(z), -static_cast<double>(greatest)), slope);
}

// 32 bits whose order is that of numbers without NaN; -0 ranks with +0.
TOKCORE_SHARED_FUNCTION uint32_t ordered_bits(float value) {
  const uint32_t bits = exact::bits_of(exact::add(value, 0.0f));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
TOKCORE_SHARED_FUNCTION float value_of_ordered(uint32_t ordered) {
  const uint32_t bits = (ordered >> 31) != 0 ? ordered & 0x7fffffffu : ~ordered;
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
#endif
}

// How far -log2 p is from the entropy, ranked so that near is great. `mean` is the mean of (greatest - z) slope.
TOKCORE_SHARED_FUNCTION uint32_t typical_rank(double log2_of_weight, double mean) {
  const double distance = exact::add(-log2_of_weight, -mean);
  return ~exact::bits_of(static_cast<float>(distance < 0.0 ? -distance : distance));
}

TOKCORE_SHARED_FUNCTION double as_double(uint64_t value) { return static_cast<double>(static_cast<int64_t>(value)); }

// The least sum that a share of `mass` needs.
TOKCORE_SHARED_FUNCTION uint64_t share_of(uint64_t mass, double share) {
  const uint64_t needed = static_cast<uint64_t>(exact::mul(as_double(mass), share));
  return needed < 1 ? 1 : needed < mass ? needed : mass;
}

// In bits, of what is left in a row.
TOKCORE_SHARED_FUNCTION double log2_of_mass(const RowSummary& row, int bits) {
  return exact::add(exact::log2(as_double(row.mass)), -static_cast<double>(bits));
}
TOKCORE_SHARED_FUNCTION float logprob_of(const RowSummary& row, double log2_of_weight, int bits) {
  return static_cast<float>(exact::mul(exact::add(log2_of_weight, -log2_of_mass(row, bits)), 0.6931471805599453));
}
TOKCORE_SHARED_FUNCTION double mean_of(const RowSummary& row) { return as_double(row.first) / as_double(row.mass); }
TOKCORE_SHARED_FUNCTION double entropy_of(const RowSummary& row, int bits) {
  const double entropy = exact::add(log2_of_mass(row, bits), mean_of(row));
  return exact::mul(entropy > 0.0 ? entropy : 0.0, 0.6931471805599453);
}
TOKCORE_SHARED_FUNCTION double varentropy_of(const RowSummary& row) {
  const double mean = mean_of(row);
  const double variance = exact::add(as_double(row.second) / as_double(row.mass), -exact::mul(mean, mean));
  return exact::mul(variance > 0.0 ? variance : 0.0, 0.4804530139182014);
}

}  // namespace tokcore::speculative
