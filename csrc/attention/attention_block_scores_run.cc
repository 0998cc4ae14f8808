// Picks the kernel of the active instruction-set level.
#include "tokcore/attention/attention_block_scores.h"
#include "tokcore/cpu/isa.h"

namespace tokcore {
namespace cpu {

TOKCORE_DECLARE_PER_ISA(void attention_block_scores(const AttentionBlockScoresParams&, const Threads&))

}  // namespace cpu

void run_attention_block_scores_cpu(const AttentionBlockScoresParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(attention_block_scores, params, threads);
}

}  // namespace tokcore
