// What the ops that sample check of logits and settings, and how a request's status becomes an error.
#pragma once

#include <cmath>
#include <string>

#include "core/tensors.h"
#include "tokcore/speculative/sampling.h"

namespace tokcore::speculative {

using core::Checker;
using core::ScalarType;
using core::Tensor;

inline constexpr const char* kSettingNames[kNumSettings] = {
    "temperature",      "top_k", "top_p", "min_p", "typical_mass", "repetition_penalty", "presence_penalty",
    "frequency_penalty"};
inline constexpr const char* kSettingRanges[kNumSettings] = {
    "a finite value >= 0", "a value >= 0",       "a value in (0, 1]", "a value in [0, 1]",
    "a value in (0, 1]",   "a finite value > 0", "a finite value",    "a finite value"};

struct SettingArguments {
  double values[kNumSettings];
  std::optional<Tensor> per_request, token_counts, allowed_bits;
};

// logits [B, V] or, with nodes, [B, N, V]. Where there are no logits, as in a greedy verification of target tokens,
// nothing of this is called.
inline void check_logits(const Checker& check, const Tensor& logits, const Tensor& seeds, const Tensor& positions,
                         const SettingArguments& settings, bool with_nodes) {
  const ScalarType type = logits.scalar_type();
  check.require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, "logits",
                "dtype float32 or bfloat16 or float16", core::dtype_name(type));
  check.dtype(seeds, "seeds", ScalarType::Long);
  check.dtype(positions, "positions", ScalarType::Long);
  const std::optional<Tensor>& per_request = settings.per_request;
  const std::optional<Tensor>& counts = settings.token_counts;
  const std::optional<Tensor>& bits = settings.allowed_bits;
  if (per_request.has_value()) check.dtype(*per_request, "per_request", ScalarType::Double);
  if (counts.has_value()) check.dtype(*counts, "token_counts", ScalarType::Int);
  if (bits.has_value()) check.dtype(*bits, "allowed_bits", ScalarType::Int);
  check.same_device(seeds, "seeds", logits, "logits");
  check.same_device(positions, "positions", logits, "logits");
  if (per_request.has_value()) check.same_device(*per_request, "per_request", logits, "logits");
  if (counts.has_value()) check.same_device(*counts, "token_counts", logits, "logits");
  if (bits.has_value()) check.same_device(*bits, "allowed_bits", logits, "logits");
  check.rank(logits, "logits", with_nodes ? 3 : 2);
  const int64_t B = logits.size(0), V = logits.size(with_nodes ? 2 : 1), words = ceil_div(V, 32);
  check.require(V >= 1, "logits", "V >= 1", V);
  check.shape(seeds, "seeds", {B}, "B of logits");
  check.shape(positions, "positions", {B}, "B of logits");
  if (per_request.has_value()) check.shape(*per_request, "per_request", {B, kNumSettings}, "[B, settings]");
  if (counts.has_value()) check.shape(*counts, "token_counts", {B, V}, "[B, V] of logits");
  if (bits.has_value() && with_nodes) {
    check.shape(*bits, "allowed_bits", {B, logits.size(1), words}, "[B, N, V/32 rounded up]");
  }
  if (bits.has_value() && !with_nodes) check.shape(*bits, "allowed_bits", {B, words}, "[B, V/32 rounded up]");
  for (int s = 0; s < kNumSettings; ++s) {
    if (!setting_is_valid(static_cast<Setting>(s), settings.values[s])) {
      check.fail(kSettingNames[s], kSettingRanges[s], settings.values[s]);
    }
  }
  const bool penalised =
      settings.values[kRepetition] != 1.0 || settings.values[kPresence] != 0.0 || settings.values[kFrequency] != 0.0;
  check.require(!penalised || counts.has_value(), "token_counts", "a Tensor with penalties", "None");
  check.unit_last_stride(logits, "logits");
}

// Tensors that a params struct points into while an op runs.
struct DenseArguments {
  Tensor seeds, positions;
  std::optional<Tensor> per_request, token_counts, allowed_bits;

  DenseArguments(const Tensor& given_seeds, const Tensor& given_positions, const SettingArguments& settings)
      : seeds(torch::stable::contiguous(given_seeds)),
        positions(torch::stable::contiguous(given_positions)),
        per_request(dense(settings.per_request)),
        token_counts(dense(settings.token_counts)),
        allowed_bits(dense(settings.allowed_bits)) {}

 private:
  static std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
    return tensor.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
  }
};

inline void fill_logits(LogitsParams& params, const Tensor& logits, const SettingArguments& settings,
                        const DenseArguments& dense, const Tensor& status) {
  const bool with_nodes = logits.dim() == 3;
  params.dtype = core::to_dtype(logits.scalar_type());
  params.logits = logits.const_data_ptr();
  params.stride_request = logits.stride(0);
  params.stride_node = with_nodes ? logits.stride(1) : 0;
  params.num_requests = logits.size(0);
  params.num_nodes = with_nodes ? logits.size(1) : 1;
  params.vocab_size = logits.size(with_nodes ? 2 : 1);
  params.seeds = core::data_of<int64_t>(dense.seeds);
  params.positions = core::data_of<int64_t>(dense.positions);
  for (int s = 0; s < kNumSettings; ++s) params.settings[s] = settings.values[s];
  params.per_request = dense.per_request.has_value() ? core::data_of<double>(*dense.per_request) : nullptr;
  params.token_counts = dense.token_counts.has_value() ? core::data_of<int32_t>(*dense.token_counts) : nullptr;
  params.allowed_bits = dense.allowed_bits.has_value() ? core::data_of<uint32_t>(*dense.allowed_bits) : nullptr;
  params.status = core::mutable_data_of<int32_t>(status);
}

// Raises what the first request that is not fine says. status: [B, 2] in the host's memory.
inline void raise_status(const Checker& check, const int32_t* status, int64_t num_requests, bool with_nodes) {
  for (int64_t request = 0; request < num_requests; ++request) {
    const int32_t code = status[2 * request], node = status[2 * request + 1];
    if (code == kFine) continue;
    const std::string in_request = "request " + std::to_string(request);
    const std::string where = (with_nodes ? " at node " + std::to_string(node) + " of " : " in ") + in_request;
    switch (code) {
      case kBadLogit:
        check.fail("logits", "numbers below inf", "NaN or inf" + where);
      case kNoLogit:
        check.fail("logits", "a logit above -inf", "none" + where);
      case kNothingAllowed:
        check.fail("allowed_bits", "a token with a logit above -inf", "none" + where);
      case kBadDraft:
        check.fail("draft_probs", "probabilities that sum to 1", "others" + where);
      case kDuplicateSibling:
        check.fail("tokens", "siblings of different tokens, for the rule is lossless for no others",
                   "the token of an earlier sibling" + where);
      case kImpossibleDraft:
        check.fail("draft_probs", "more than 0 for every child, for the rule is lossless for no others", "0" + where);
      case kBadLink:
        check.fail("parents", "links of trees of 0 to N nodes, as tree_links makes them", "others" + where);
      case kBadToken:
        check.fail("tokens", "values in [0, V)", "another" + where);
      default:
        check.fail(kSettingNames[code - kBadSetting], kSettingRanges[code - kBadSetting], "another in " + in_request);
    }
  }
}

}  // namespace tokcore::speculative
