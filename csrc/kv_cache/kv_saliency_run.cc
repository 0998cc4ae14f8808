// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/kv_cache/kv_saliency.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void kv_saliency(const KvSaliencyParams&, const Threads&))
}  // namespace cpu

void run_kv_saliency_cpu(const KvSaliencyParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(kv_saliency, params, threads);
}

}  // namespace tokcore
