// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/kv_cache/decode_attention.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void decode_attention(const DecodeAttentionParams&, const Threads&))
}  // namespace cpu

void run_decode_attention_cpu(const DecodeAttentionParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(decode_attention, params, threads);
}

}  // namespace tokcore
