// The launchers that the torch-facing entries call: by element type and head size. Included once by a .cu file, and
// once by the tests for the execution on the CPU.
#pragma once

#include "attention/block_sparse_attention_forward_sm80.cuh"
#include "tokcore/attention/attention_cuda.h"

namespace tokcore {
namespace attention {

#define TOKCORE_DECLARE_FORWARD(element)                                                    \
  extern template void launch_forward_sm80<element, 64>(const ForwardTask&, cuda::Stream);  \
  extern template void launch_forward_sm80<element, 128>(const ForwardTask&, cuda::Stream); \
  extern template void launch_forward_sm80<element, 256>(const ForwardTask&, cuda::Stream);
TOKCORE_DECLARE_FORWARD(BFloat16)
TOKCORE_DECLARE_FORWARD(Float16)
TOKCORE_DECLARE_FORWARD(float)
#undef TOKCORE_DECLARE_FORWARD

// Calls work with the least compiled head size that holds head_dim.
template <class Work>
void with_head_dim(int64_t head_dim, Work&& work) {
  if (head_dim <= 64) return work(std::integral_constant<int, 64>());
  if (head_dim <= 128) return work(std::integral_constant<int, 128>());
  work(std::integral_constant<int, 256>());
}

// The task of a call with aligned operands; without a stream only the workspace is planned.
template <class T>
ForwardTask plan_forward(const BlockSparseAttentionForwardParams& params, cuda::WorkspacePlan& workspace,
                         const cuda::Stream* stream) {
  AlignedHeads<T> heads(params.shape, workspace, stream);
  ForwardTask task = {params, static_cast<int>(padded_head_dim<T>(params.shape.head_dim)),
                      ScoreScale::of(params.scale)};
  task.params.q = heads.queries(params.q);
  task.params.k = heads.keys(params.k);
  task.params.v = heads.keys(params.v);
  return task;
}

}  // namespace attention

size_t block_sparse_attention_forward_workspace_cuda(const BlockSparseAttentionForwardParams& params,
                                                     const CudaMachine&) {
  return with_dtype(params.dtype, [&]<class T>(T) {
    cuda::WorkspacePlan workspace;
    attention::plan_forward<T>(params, workspace, nullptr);
    return workspace.used();
  });
}

void run_block_sparse_attention_forward_cuda(const BlockSparseAttentionForwardParams& params, const CudaCall& call) {
  with_dtype(params.dtype, [&]<class T>(T) {
    cuda::WorkspacePlan workspace(call.workspace);
    const attention::ForwardTask task = attention::plan_forward<T>(params, workspace, &call.stream);
    attention::with_head_dim(params.shape.head_dim, [&]<int kHeadDim>(std::integral_constant<int, kHeadDim>) {
      attention::launch_forward_sm80<T, kHeadDim>(task, call.stream);
    });
  });
}

}  // namespace tokcore
