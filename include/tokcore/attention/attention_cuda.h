// The family on CUDA: the CPU's params structs with addresses on the device. Nothing here waits for the GPU, and
// everything can be captured into a graph.
#pragma once

#include <cstddef>

#include "tokcore/attention/attention_block_scores.h"
#include "tokcore/attention/block_sparse_attention.h"
#include "tokcore/cuda/machine.h"

namespace tokcore {

size_t block_sparse_attention_forward_workspace_cuda(const BlockSparseAttentionForwardParams& params,
                                                     const CudaMachine& machine);
void run_block_sparse_attention_forward_cuda(const BlockSparseAttentionForwardParams& params, const CudaCall& call);

size_t block_sparse_attention_backward_workspace_cuda(const BlockSparseAttentionBackwardParams& params,
                                                      const CudaMachine& machine);
void run_block_sparse_attention_backward_cuda(const BlockSparseAttentionBackwardParams& params, const CudaCall& call);

size_t attention_block_scores_workspace_cuda(const AttentionBlockScoresParams& params, const CudaMachine& machine);
void run_attention_block_scores_cuda(const AttentionBlockScoresParams& params, const CudaCall& call);

}  // namespace tokcore
