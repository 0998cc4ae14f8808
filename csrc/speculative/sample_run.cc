// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/speculative/sample.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void sample(const SampleParams&, const Threads&))
}  // namespace cpu

void run_sample_cpu(const SampleParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(sample, params, threads);
}

}  // namespace tokcore
