// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/speculative/draft_samples.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void draft_samples(const DraftSamplesParams&, const Threads&))
}  // namespace cpu

void run_draft_samples_cpu(const DraftSamplesParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(draft_samples, params, threads);
}

}  // namespace tokcore
