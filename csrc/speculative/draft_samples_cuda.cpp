// Torch-facing CUDA entry of draft_samples. Nothing waits for the GPU unless validate asks for it.
#include <torch/csrc/stable/library.h>

#include "speculative/draft_samples_check.h"
#include "speculative/sampling_status_cuda.h"
#include "tokcore/speculative/sampling_cuda.h"

namespace tokcore::speculative {
namespace {

DraftSamplesResult draft_samples(const Tensor& logits, const Tensor& seeds, const Tensor& positions, int64_t k,
                                 std::string children, double temperature, int64_t top_k, double top_p, double min_p,
                                 double typical_mass, std::optional<Tensor> per_request, bool validate) {
  const SettingArguments settings = draft_settings(temperature, top_k, top_p, min_p, typical_mass, per_request);
  const DraftSamplesCall call(logits, seeds, positions, k, children, settings);
  const core::CudaScope scope("draft_samples", logits);
  run_draft_samples_cuda(call.params, scope.stream());
  if (validate) raise_device_status(call.check, call.params, scope, false);
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("draft_samples", TORCH_BOX(&tokcore::speculative::draft_samples));
}
