// Torch-facing CPU entries of verify_tree_sample and verify_tree_greedy.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/verify_tree_check.h"

namespace tokcore::speculative {
namespace {

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
  const cpu::Threads threads = core::torch_threads();
  const VerifySampleCall call(check, logits, {tokens, parents, counts, first_child, next_sibling}, seeds, positions,
                              draft_probs, rule, lossless, settings, typical_epsilon, typical_alpha, rows,
                              threads.count);
  run_verify_tree_cpu(call.params(), threads);
  if (validate) raise_status(check, call.params().status, call.params().num_requests, true);
  return call.result();
}

VerifyResult verify_tree_greedy(std::optional<Tensor> logits, std::optional<Tensor> target_tokens, const Tensor& tokens,
                                const Tensor& parents, const Tensor& counts, const Tensor& first_child,
                                const Tensor& next_sibling, bool validate) {
  const Checker check("verify_tree_greedy");
  const cpu::Threads threads = core::torch_threads();
  const VerifyGreedyCall call(check, logits, target_tokens, {tokens, parents, counts, first_child, next_sibling},
                              threads.count);
  run_verify_tree_cpu(call.params(), threads);
  if (validate) raise_status(check, call.params().status, call.params().num_requests, true);
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("verify_tree_sample", TORCH_BOX(&tokcore::speculative::verify_tree_sample));
  m.impl("verify_tree_greedy", TORCH_BOX(&tokcore::speculative::verify_tree_greedy));
}
