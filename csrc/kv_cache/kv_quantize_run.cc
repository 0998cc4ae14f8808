// Picks the kernels of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/kv_cache/kv_quantize.h"

namespace tokcore {
namespace cpu {

TOKCORE_DECLARE_PER_ISA(void kv_quantize(const KvQuantizeParams&, const Threads&))
TOKCORE_DECLARE_PER_ISA(void kv_dequantize(const KvDequantizeParams&, const Threads&))

}  // namespace cpu

void run_kv_quantize_cpu(const KvQuantizeParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(kv_quantize, params, threads);
}

void run_kv_dequantize_cpu(const KvDequantizeParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(kv_dequantize, params, threads);
}

}  // namespace tokcore
