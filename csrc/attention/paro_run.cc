// Picks the kernels of the active instruction-set level.
#include "tokcore/attention/paro.h"
#include "tokcore/cpu/isa.h"

namespace tokcore {
namespace cpu {

TOKCORE_DECLARE_PER_ISA(void paro_prepare(const ParoPrepareParams&, const Threads&))
TOKCORE_DECLARE_PER_ISA(void paro_attention(const ParoAttentionParams&, const Threads&))

}  // namespace cpu

void run_paro_prepare_cpu(const ParoPrepareParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(paro_prepare, params, threads);
}

void run_paro_attention_cpu(const ParoAttentionParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(paro_attention, params, threads);
}

}  // namespace tokcore
