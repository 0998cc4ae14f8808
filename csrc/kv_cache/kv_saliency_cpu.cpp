// Torch-facing CPU entry of kv_saliency.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "kv_cache/kv_saliency_check.h"

namespace tokcore::kv_cache {
namespace {

Tensor kv_saliency(const Tensor& q_probe, const Tensor& k, const Tensor& probe_positions, std::optional<Tensor> lse,
                   double scale, std::string reduce, double decay, double temperature,
                   std::optional<int64_t> gumbel_seed) {
  const Checker check("kv_saliency");
  const SaliencyArguments a{q_probe, k, probe_positions, lse, scale, reduce, decay, temperature, gumbel_seed};
  const SaliencyReduce kind = check_saliency(check, a);
  const Tensor scores = core::zeros_like_on(q_probe, {k.size(0), k.size(2), k.size(1)}, ScalarType::Float);
  if (scores.numel() == 0 || q_probe.size(1) == 0) return scores;
  const Tensor dense_positions = torch::stable::contiguous(probe_positions);
  const std::optional<Tensor> dense_lse = core::as_contiguous_float(lse);
  const KvSaliencyParams params = saliency_params(a, kind, dense_positions, dense_lse, scores);
  run_kv_saliency_cpu(params, core::torch_threads());
  return scores;
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("kv_saliency", TORCH_BOX(&tokcore::kv_cache::kv_saliency)); }
