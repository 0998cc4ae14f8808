// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/kv_cache/kv_append.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void kv_append(const KvAppendParams&, const Threads&))
}  // namespace cpu

void run_kv_append_cpu(const KvAppendParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(kv_append, params, threads);
}

}  // namespace tokcore
