// Torch-facing CUDA entry of sample. Nothing waits for the GPU unless validate asks for it.
#include <torch/csrc/stable/library.h>

#include "speculative/sample_check.h"
#include "speculative/sampling_status_cuda.h"
#include "tokcore/speculative/sampling_cuda.h"

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
  const core::CudaScope scope("sample", logits);
  const SampleOutputs outputs(logits, return_entropy);
  const DenseArguments dense(seeds, positions, settings);
  const SampleParams params = outputs.params(logits, settings, dense);
  run_sample_cuda(params, scope.stream());
  if (validate) raise_device_status(check, params, scope, false);
  return outputs.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("sample", TORCH_BOX(&tokcore::speculative::sample)); }
