// Picks the kernel of the active instruction-set level.
#include "tokcore/kv_cache/kv_compact.h"

#include "tokcore/cpu/isa.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void kv_compact(const KvCompactParams&, const Threads&))
}  // namespace cpu

void run_kv_compact_cpu(const KvCompactParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(kv_compact, params, threads);
}

}  // namespace tokcore
