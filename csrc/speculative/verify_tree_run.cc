// Picks the kernel of the active instruction-set level.
#include "tokcore/cpu/isa.h"
#include "tokcore/speculative/verify_tree.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(void verify_tree(const VerifyTreeParams&, const Threads&))
}  // namespace cpu

void run_verify_tree_cpu(const VerifyTreeParams& params, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(verify_tree, params, threads);
}

}  // namespace tokcore
