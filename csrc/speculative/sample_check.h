// The outputs of sample and its params struct, for both backends.
#pragma once

#include "speculative/sampling_check.h"
#include "tokcore/speculative/sample.h"

namespace tokcore::speculative {

// token, logprob, entropy, varentropy, status
using SampleResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

class SampleOutputs {
 public:
  SampleOutputs(const Tensor& logits, bool wants_entropy)
      : wants_entropy_(wants_entropy),
        token_(core::empty_like_on(logits, {logits.size(0)}, ScalarType::Long)),
        logprob_(core::empty_like_on(logits, {logits.size(0)}, ScalarType::Float)),
        entropy_(core::empty_like_on(logits, {wants_entropy ? logits.size(0) : 0}, ScalarType::Float)),
        varentropy_(core::empty_like_on(logits, {wants_entropy ? logits.size(0) : 0}, ScalarType::Float)),
        status_(core::empty_like_on(logits, {logits.size(0), 2}, ScalarType::Int)) {}

  SampleParams params(const Tensor& logits, const SettingArguments& settings, const DenseArguments& dense) const {
    SampleParams params = {};
    fill_logits(params, logits, settings, dense, status_);
    params.wants_entropy = wants_entropy_;
    params.tokens = core::mutable_data_of<int64_t>(token_);
    params.logprobs = core::mutable_data_of<float>(logprob_);
    params.entropies = core::mutable_data_of<float>(entropy_);
    params.varentropies = core::mutable_data_of<float>(varentropy_);
    return params;
  }
  SampleResult result() const { return {token_, logprob_, entropy_, varentropy_, status_}; }

 private:
  bool wants_entropy_;
  Tensor token_, logprob_, entropy_, varentropy_, status_;
};

}  // namespace tokcore::speculative
