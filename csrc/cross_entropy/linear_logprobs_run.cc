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

// The most workers, threads.count at most, whose scratch fits into `bytes`; 0 if one does not.
int most_workers(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads, int64_t bytes) {
  const int64_t one = sweep_workspace(params, {1, threads.launch});
  if (one > bytes) return 0;
  const int64_t more = sweep_workspace(params, {2, threads.launch}) - one;
  return static_cast<int>(min(1 + (bytes - one) / more, threads.count));
}

// How a backward stays within its workspace: fewer workers, sweeps apart, or both, whichever is fastest. Every sum
// is taken in the same order in all of them.
struct BackwardPlan {
  bool separate;
  int workers;

  BackwardPlan(const LinearLogprobsBackwardParams& params, const SeparateSweeps& sweeps, const cpu::Threads& threads)
      : separate(false), workers(threads.count) {
    if (params.workspace_bytes == 0) return;
    constexpr int64_t kProductsTogether = 3, kProductsApart = 4;
    const int together = most_workers(params, threads, params.workspace_bytes);
    const int apart = min(most_workers(sweeps.for_c, threads, params.workspace_bytes),
                          most_workers(sweeps.for_e, threads, params.workspace_bytes));
    separate = apart * kProductsTogether > together * kProductsApart;
    workers = max(separate ? apart : together, 1);
  }
};

}  // namespace

void run_linear_logprobs_backward_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  SeparateSweeps sweeps(params);
  const BackwardPlan plan(params, sweeps, threads);
  const cpu::Threads workers = {plan.workers, threads.launch};
  if (!plan.separate) return sweep_backward(params, workers);
  if (params.grad_c != nullptr || params.grad_c_sum != nullptr || params.grad_bias != nullptr) {
    sweep_backward(sweeps.for_c, workers);
  }
  if (params.grad_e == nullptr) return;
  for (int64_t first = 0; first < params.num_active; first += SeparateSweeps::kPositionsAtOnce) {
    LinearLogprobsBackwardParams group = sweeps.for_e;
    group.active_positions = params.active_positions + first;
    group.num_active = min(params.num_active - first, SeparateSweeps::kPositionsAtOnce);
    if (params.kept != nullptr) group.kept = params.kept + first / kFilterTile;
    sweep_backward(group, workers);
  }
}

int64_t least_backward_workspace_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  const SeparateSweeps sweeps(params);
  const cpu::Threads one = {1, threads.launch};
  const int64_t apart = max(sweep_workspace(sweeps.for_c, one), sweep_workspace(sweeps.for_e, one));
  return min(apart, sweep_workspace(params, one));
}

}  // namespace tokcore
