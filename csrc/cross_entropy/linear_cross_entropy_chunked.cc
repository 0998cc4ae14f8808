// Loss and gradients in one pass over chunks of positions: the forward kernel leaves a chunk's logits in the workspace,
// the backward kernel turns them into gradients there.
#include <vector>

#include "tokcore/common/math.h"
#include "tokcore/cross_entropy/linear_logprobs.h"

namespace tokcore {
namespace {

double total_weight(const LinearLogitsParams& params) {
  if (params.class_weight == nullptr) return static_cast<double>(params.vocab_size);
  double sum = 0.0;
  for (int64_t v = 0; v < params.vocab_size; ++v) sum += static_cast<double>(params.class_weight[v]);
  return sum;
}

}  // namespace

void run_linear_cross_entropy_chunked_cpu(LinearCrossEntropyChunkedParams& params, const cpu::Threads& threads) {
  const double sum_of_weights = params.smooth_scale != nullptr ? total_weight(params) : 0.0;
  const size_t num_positions = static_cast<size_t>(params.num_positions);
  std::vector<float> grad_prob(num_positions), grad_logits(num_positions);
  std::vector<float> grad_sum(params.smooth_scale != nullptr ? num_positions : 0);
  params.loss = 0.0;
  for (int64_t first = 0; first < params.num_active; first += params.chunk_size) {
    LinearLogitsParams chunk = params;
    chunk.active_positions = params.active_positions + first;
    chunk.num_active = min(params.num_active - first, params.chunk_size);

    LinearLogprobsForwardParams forward = {};
    static_cast<LinearLogitsParams&>(forward) = chunk;
    forward.wants_logit_sum = params.smooth_scale != nullptr;
    forward.lse = params.lse;
    forward.gathered = params.logits;
    forward.logit_sum = params.logit_sum;
    forward.stored_logits = params.workspace;
    run_linear_logprobs_forward_cpu(forward, threads);

    for (int64_t i = 0; i < chunk.num_active; ++i) {
      const int64_t t = chunk.active_positions[i];
      const double lse = static_cast<double>(params.lse[t]);
      const double nll = static_cast<double>(params.nll_scale[t]);
      double probability = nll;
      params.loss += nll * (lse - static_cast<double>(params.logits[t]));
      if (params.smooth_scale != nullptr) {
        const double smooth = static_cast<double>(params.smooth_scale[t]);
        params.loss += smooth * (sum_of_weights * lse - static_cast<double>(params.logit_sum[t]));
        probability += smooth * sum_of_weights;
        grad_sum[static_cast<size_t>(t)] = static_cast<float>(-smooth);
      }
      if (params.square_scale != nullptr) {
        const double square = static_cast<double>(params.square_scale[t]);
        params.loss += square * lse * lse;
        probability += 2.0 * square * lse;
      }
      grad_prob[static_cast<size_t>(t)] = static_cast<float>(probability);
      grad_logits[static_cast<size_t>(t)] = static_cast<float>(-nll);
    }

    LinearLogprobsBackwardParams backward = {};
    static_cast<LinearLogitsParams&>(backward) = chunk;
    backward.logits = params.logits;
    backward.lse = params.lse;
    backward.grad_prob = grad_prob.data();
    backward.grad_logits = grad_logits.data();
    backward.grad_sum = params.smooth_scale != nullptr ? grad_sum.data() : nullptr;
    backward.stored_logits = params.workspace;
    backward.grad_e = params.grad_e;
    backward.grad_c = params.grad_c_sum != nullptr ? nullptr : params.grad_c;
    backward.grad_c_sum = params.grad_c_sum;
    backward.grad_bias = params.grad_bias;
    run_linear_logprobs_backward_cpu(backward, threads);
  }
}

}  // namespace tokcore
