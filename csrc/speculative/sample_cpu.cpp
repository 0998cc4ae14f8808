// Torch-facing CPU entry of sample.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/sample_check.h"

namespace tokcore::speculative {
namespace {

SampleResult sample(const Tensor& logits, const Tensor& seeds, const Tensor& positions, double temperature,
                    int64_t top_k, double top_p, double min_p, double typical_mass, double repetition_penalty,
                    double presence_penalty, double frequency_penalty, std::optional<Tensor> per_request,
                    std::optional<Tensor> token_counts, std::optional<Tensor> allowed_bits, bool return_entropy,
                    bool validate) {
  const Checker check("sample");
  const SettingArguments settings{{temperature, static_cast<double>(top_k), top_p, min_p, typical_mass,
                                   repetition_penalty, presence_penalty, frequency_penalty},
                                  per_request,
                                  token_counts,
                                  allowed_bits};
  check_logits(check, logits, seeds, positions, settings, false);
  const SampleOutputs outputs(logits, return_entropy);
  const DenseArguments dense(seeds, positions, settings);
  const SampleParams params = outputs.params(logits, settings, dense);
  run_sample_cpu(params, core::torch_threads());
  if (validate) raise_status(check, params.status, params.num_requests, false);
  return outputs.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("sample", TORCH_BOX(&tokcore::speculative::sample)); }
