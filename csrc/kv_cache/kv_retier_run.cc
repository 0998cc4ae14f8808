// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/kv_cache/kv_retier.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void kv_retier(const KvRetierParams&, const Threads&))
}  // namespace cpu

void run_kv_retier_cpu(const KvRetierParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(kv_retier, params, threads);
}

}  // namespace tokcore
