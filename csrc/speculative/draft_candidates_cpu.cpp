// Torch-facing CPU entry of draft_candidates.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_candidates.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor> draft_candidates(const Tensor& logits, int64_t k, double temperature, bool probs) {
  const Checker check("draft_candidates");
  const ScalarType type = logits.scalar_type();
  check.require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, "logits",
                "dtype float32 or bfloat16 or float16", core::dtype_name(type));
  check.rank(logits, "logits", 2);
  const int64_t num_rows = logits.size(0), vocab_size = logits.size(1);
  check.require(vocab_size < int64_t{1} << 31, "logits", "fewer than 2147483648 columns", core::shape_of(logits));
  check_range(check, "k", k, 1, std::min<int64_t>(vocab_size, 64), "V of logits, at most 64");
  check.require(temperature > 0.0 && std::isfinite(temperature), "temperature", "a finite value > 0", temperature);
  check.unit_last_stride(logits, "logits");

  const Tensor tokens = core::empty_like_on(logits, {num_rows, k}, ScalarType::Int);
  const Tensor weights = core::empty_like_on(logits, {probs ? num_rows : 0, k}, ScalarType::Float);
  DraftCandidatesParams params = {};
  params.dtype = core::to_dtype(type);
  params.logits = logits.const_data_ptr();
  params.stride_row = logits.stride(0);
  params.num_rows = num_rows;
  params.vocab_size = vocab_size;
  params.k = k;
  params.temperature = static_cast<float>(temperature);
  params.tokens = core::mutable_data_of<int32_t>(tokens);
  params.probs = probs ? core::mutable_data_of<float>(weights) : nullptr;
  run_draft_candidates_cpu(params, core::torch_threads());
  return {tokens, weights};
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("draft_candidates", TORCH_BOX(&tokcore::speculative::draft_candidates));
}
