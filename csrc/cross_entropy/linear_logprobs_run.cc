// Picks the kernels of the active instruction-set level.
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

void run_linear_logprobs_backward_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(linear_logprobs_backward, params, threads);
}

int64_t linear_logprobs_backward_workspace_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(linear_logprobs_backward_workspace, params, threads);
}

}  // namespace tokcore
