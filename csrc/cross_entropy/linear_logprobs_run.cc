// Picks the kernels of the active instruction-set level.
#include "tokcore/common/math.h"
#include "tokcore/cpu/isa.h"
#include "tokcore/cross_entropy/linear_logprobs.h"

namespace tokcore {
namespace cpu {

TOKCORE_DECLARE_PER_ISA(void linear_logprobs_forward(const LinearLogprobsForwardParams&, const Threads&))
TOKCORE_DECLARE_PER_ISA(void linear_logprobs_backward(const LinearLogprobsBackwardParams&, const Threads&))
TOKCORE_DECLARE_PER_ISA(int64_t linear_logprobs_backward_workspace(const LinearLogprobsBackwardParams&, const Threads&))

}  // namespace cpu

void run_linear_logprobs_forward_cpu(const LinearLogprobsForwardParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(linear_logprobs_forward, params, threads);
}

namespace {

void sweep_backward(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(linear_logprobs_backward, params, threads);
}

int64_t sweep_workspace(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(linear_logprobs_backward_workspace, params, threads);
}

// Both gradients in one sweep share the recomputed logits, but keep every position's grad_e in fp32 until the end.
// Apart, grad_c (and the bias's gradient) need one sweep over all positions, grad_e one per group of positions.
struct SeparateSweeps {
  explicit SeparateSweeps(const LinearLogprobsBackwardParams& params) : for_c(params), for_e(params) {
    for_c.grad_e = nullptr;
    for_e.grad_c = nullptr;
    for_e.grad_c_sum = nullptr;
    for_e.grad_bias = nullptr;
    for_e.num_active = min(params.num_active, kPositionsAtOnce);
  }
  static constexpr int64_t kPositionsAtOnce = 1024;
  LinearLogprobsBackwardParams for_c;
  LinearLogprobsBackwardParams for_e;
};

}  // namespace

void run_linear_logprobs_backward_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  const bool separate = params.workspace_bytes != 0 && sweep_workspace(params, threads) > params.workspace_bytes;
  if (!separate) return sweep_backward(params, threads);
  SeparateSweeps sweeps(params);
  if (params.grad_c != nullptr || params.grad_c_sum != nullptr || params.grad_bias != nullptr) {
    sweep_backward(sweeps.for_c, threads);
  }
  if (params.grad_e == nullptr) return;
  for (int64_t first = 0; first < params.num_active; first += SeparateSweeps::kPositionsAtOnce) {
    LinearLogprobsBackwardParams group = sweeps.for_e;
    group.active_positions = params.active_positions + first;
    group.num_active = min(params.num_active - first, SeparateSweeps::kPositionsAtOnce);
    if (params.kept != nullptr) group.kept = params.kept + first / kFilterTile;
    sweep_backward(group, threads);
  }
}

int64_t least_backward_workspace_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  const SeparateSweeps sweeps(params);
  const int64_t apart = max(sweep_workspace(sweeps.for_c, threads), sweep_workspace(sweeps.for_e, threads));
  return min(apart, sweep_workspace(params, threads));
}

}  // namespace tokcore
