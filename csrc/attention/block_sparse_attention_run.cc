// Picks the kernels of the active instruction-set level.
#include "tokcore/attention/block_sparse_attention.h"
#include "tokcore/cpu/isa.h"

namespace tokcore {
namespace cpu {

TOKCORE_DECLARE_PER_ISA(void block_sparse_attention_forward(const BlockSparseAttentionForwardParams&, const Threads&))
TOKCORE_DECLARE_PER_ISA(void block_sparse_attention_backward(const BlockSparseAttentionBackwardParams&, const Threads&))

}  // namespace cpu

void run_block_sparse_attention_forward_cpu(const BlockSparseAttentionForwardParams& params,
                                            const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(block_sparse_attention_forward, params, threads);
}

void run_block_sparse_attention_backward_cpu(const BlockSparseAttentionBackwardParams& params,
                                             const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(block_sparse_attention_backward, params, threads);
}

}  // namespace tokcore
