// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/speculative/draft_candidates.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void draft_candidates(const DraftCandidatesParams&, const Threads&))
}  // namespace cpu

void run_draft_candidates_cpu(const DraftCandidatesParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(draft_candidates, params, threads);
}

}  // namespace tokcore
