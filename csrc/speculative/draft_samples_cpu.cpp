// Torch-facing CPU entry of draft_samples.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_samples_check.h"

namespace tokcore::speculative {
namespace {

DraftSamplesResult draft_samples(const Tensor& logits, const Tensor& seeds, const Tensor& positions, int64_t k,
                                 std::string children, double temperature, int64_t top_k, double top_p, double min_p,
                                 double typical_mass, std::optional<Tensor> per_request, bool validate) {
  const SettingArguments settings = draft_settings(temperature, top_k, top_p, min_p, typical_mass, per_request);
  const DraftSamplesCall call(logits, seeds, positions, k, children, settings);
  run_draft_samples_cpu(call.params, core::torch_threads());
  if (validate) raise_status(call.check, call.params.status, call.params.num_requests, false);
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("draft_samples", TORCH_BOX(&tokcore::speculative::draft_samples)); }
