// The checks of draft_samples, its outputs and its params struct, for both backends.
#pragma once

#include "speculative/draft_check.h"
#include "speculative/sampling_check.h"
#include "tokcore/speculative/draft_samples.h"

namespace tokcore::speculative {

// tokens, probs, draft_probs, status
using DraftSamplesResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline DraftChildren to_children(const Checker& check, const std::string& children) {
  if (children == "coupled") return DraftChildren::kCoupled;
  if (children == "without_replacement") return DraftChildren::kWithoutReplacement;
  if (children == "iid") return DraftChildren::kIid;
  check.fail("children", "'coupled' or 'without_replacement' or 'iid'", "'" + children + "'");
}

// Arguments in, kernel's params and results out; alive while the kernel runs.
class DraftSamplesCall {
 public:
  DraftSamplesCall(const Tensor& logits, const Tensor& seeds, const Tensor& positions, int64_t k,
                   const std::string& children, const SettingArguments& settings)
      : settings_(settings) {
    check_logits(check, logits, seeds, positions, settings_, false);
    const int64_t R = logits.size(0), V = logits.size(1);
    check.require(V < int64_t{1} << 31, "logits", "fewer than 2147483648 columns", core::shape_of(logits));
    check_range(check, "k", k, 1, std::min(V, kMostDraftSamples), "V of logits, at most 64");
    params.children = to_children(check, children);
    params.k = k;
    dense_.emplace(seeds, positions, settings_);
    const bool wants_q = params.children != DraftChildren::kCoupled;
    tokens_.emplace(core::empty_like_on(logits, {R, k}, ScalarType::Int));
    probs_.emplace(core::empty_like_on(logits, {R, k}, ScalarType::Float));
    draft_probs_.emplace(core::empty_like_on(logits, {wants_q ? R : 0, V}, ScalarType::Float));
    status_.emplace(core::empty_like_on(logits, {R, 2}, ScalarType::Int));
    fill_logits(params, logits, settings_, *dense_, *status_);
    params.tokens = core::mutable_data_of<int32_t>(*tokens_);
    params.probs = core::mutable_data_of<float>(*probs_);
    params.draft_probs = wants_q ? core::mutable_data_of<float>(*draft_probs_) : nullptr;
  }
  DraftSamplesResult result() const { return {*tokens_, *probs_, *draft_probs_, *status_}; }

  const Checker check{"draft_samples"};
  DraftSamplesParams params = {};

 private:
  const SettingArguments& settings_;
  std::optional<DenseArguments> dense_;
  std::optional<Tensor> tokens_, probs_, draft_probs_, status_;
};

// Penalties are the target's: what a drafter draws from needs none.
inline SettingArguments draft_settings(double temperature, int64_t top_k, double top_p, double min_p,
                                       double typical_mass, const std::optional<Tensor>& per_request) {
  return {{temperature, static_cast<double>(top_k), top_p, min_p, typical_mass, 1.0, 0.0, 0.0},
          per_request,
          std::nullopt,
          std::nullopt};
}

}  // namespace tokcore::speculative
