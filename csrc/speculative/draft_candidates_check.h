// The checks of draft_candidates, its outputs and its params struct, for both backends.
#pragma once

#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_candidates.h"

namespace tokcore::speculative {

// Arguments in, kernel's params and results out; alive while the kernel runs.
class CandidatesCall {
 public:
  CandidatesCall(const Tensor& logits, int64_t k, double temperature, bool probs)
      : params(checked(logits, k, temperature)),
        tokens_(core::empty_like_on(logits, {params.num_rows, k}, ScalarType::Int)),
        probs_(core::empty_like_on(logits, {probs ? params.num_rows : 0, k}, ScalarType::Float)) {
    params.tokens = core::mutable_data_of<int32_t>(tokens_);
    params.probs = probs ? core::mutable_data_of<float>(probs_) : nullptr;
  }
  std::tuple<Tensor, Tensor> result() const { return {tokens_, probs_}; }

  DraftCandidatesParams params;

 private:
  static DraftCandidatesParams checked(const Tensor& logits, int64_t k, double temperature) {
    const Checker check("draft_candidates");
    const ScalarType type = logits.scalar_type();
    check.require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, "logits",
                  "dtype float32 or bfloat16 or float16", core::dtype_name(type));
    check.rank(logits, "logits", 2);
    const int64_t vocab_size = logits.size(1);
    check.require(vocab_size < int64_t{1} << 31, "logits", "fewer than 2147483648 columns", core::shape_of(logits));
    check_range(check, "k", k, 1, std::min<int64_t>(vocab_size, kMostDraftCandidates), "V of logits, at most 64");
    check.require(temperature > 0.0 && std::isfinite(temperature), "temperature", "a finite value > 0", temperature);
    check.unit_last_stride(logits, "logits");
    return {.dtype = core::to_dtype(type),
            .logits = logits.const_data_ptr(),
            .stride_row = logits.stride(0),
            .num_rows = logits.size(0),
            .vocab_size = vocab_size,
            .k = k,
            .temperature = static_cast<float>(temperature),
            .tokens = nullptr,
            .probs = nullptr};
  }

  Tensor tokens_, probs_;
};

}  // namespace tokcore::speculative
