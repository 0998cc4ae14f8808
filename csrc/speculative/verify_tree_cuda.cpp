// Torch-facing CUDA entries of verify_tree_sample and verify_tree_greedy. Nothing waits for the GPU unless validate
// asks for it.
#include <torch/csrc/stable/library.h>

#include "speculative/sampling_status_cuda.h"
#include "speculative/verify_tree_check.h"
#include "tokcore/speculative/sampling_cuda.h"

namespace tokcore::speculative {
namespace {

void run(const Checker& check, const Tensor& like, const VerifyTreeParams& params, const core::CudaScope& scope,
         bool validate) {
  const Tensor workspace = core::workspace_like(like, verify_tree_workspace_cuda(params));
  run_verify_tree_cuda(params, workspace.mutable_data_ptr(), scope.stream());
  if (validate) raise_device_status(check, params, scope, true);
}

VerifyResult verify_tree_sample(const Tensor& logits, const Tensor& tokens, const Tensor& parents, const Tensor& counts,
                                const Tensor& first_child, const Tensor& next_sibling, const Tensor& seeds,
                                const Tensor& positions, std::optional<Tensor> draft_probs, std::string rule,
                                bool lossless, double temperature, int64_t top_k, double top_p, double min_p,
                                double typical_mass, double repetition_penalty, double presence_penalty,
                                double frequency_penalty, std::optional<Tensor> per_request,
                                std::optional<Tensor> token_counts, std::optional<Tensor> allowed_bits,
                                double typical_epsilon, double typical_alpha, std::string rows, bool validate) {
  const Checker check("verify_tree_sample");
  const SettingArguments settings{{temperature, static_cast<double>(top_k), top_p, min_p, typical_mass,
                                   repetition_penalty, presence_penalty, frequency_penalty},
                                  per_request,
                                  token_counts,
                                  allowed_bits};
  const core::CudaScope scope("verify_tree_sample", logits);
  const VerifySampleCall call(check, logits, {tokens, parents, counts, first_child, next_sibling}, seeds, positions,
                              draft_probs, rule, lossless, settings, typical_epsilon, typical_alpha, rows,
                              scope.multiprocessors());
  run(check, logits, call.params(), scope, validate);
  return call.result();
}

VerifyResult verify_tree_greedy(std::optional<Tensor> logits, std::optional<Tensor> target_tokens, const Tensor& tokens,
                                const Tensor& parents, const Tensor& counts, const Tensor& first_child,
                                const Tensor& next_sibling, bool validate) {
  const Checker check("verify_tree_greedy");
  const core::CudaScope scope("verify_tree_greedy", tokens);
  const VerifyGreedyCall call(check, logits, target_tokens, {tokens, parents, counts, first_child, next_sibling},
                              scope.multiprocessors());
  run(check, tokens, call.params(), scope, validate);
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("verify_tree_sample", TORCH_BOX(&tokcore::speculative::verify_tree_sample));
  m.impl("verify_tree_greedy", TORCH_BOX(&tokcore::speculative::verify_tree_greedy));
}
