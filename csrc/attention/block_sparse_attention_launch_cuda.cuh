// The launchers that the torch-facing entries call: by element type and head size. Included once by a .cu file, and
// once by the tests for the execution on the CPU.
#pragma once

#include "attention/block_sparse_attention_backward_sm80.cuh"
#include "attention/block_sparse_attention_forward_sm80.cuh"
#include "tokcore/attention/attention_cuda.h"

namespace tokcore {
namespace attention {

#define TOKCORE_DECLARE_HEAD_DIM(element, head_dim)                                                      \
  extern template void launch_forward_sm80<element, head_dim>(const ForwardTask&, cuda::Stream);         \
  extern template void launch_statistics_sm80<element, head_dim>(const BackwardTask&, cuda::Stream);     \
  extern template void launch_backward_sm80<element, head_dim, true>(const BackwardTask&, cuda::Stream); \
  extern template void launch_backward_sm80<element, head_dim, false>(const BackwardTask&, cuda::Stream);
#define TOKCORE_DECLARE_ELEMENT(element) \
  TOKCORE_DECLARE_HEAD_DIM(element, 64)  \
  TOKCORE_DECLARE_HEAD_DIM(element, 128) \
  TOKCORE_DECLARE_HEAD_DIM(element, 256)
TOKCORE_DECLARE_ELEMENT(BFloat16)
TOKCORE_DECLARE_ELEMENT(Float16)
TOKCORE_DECLARE_ELEMENT(float)
#undef TOKCORE_DECLARE_ELEMENT
#undef TOKCORE_DECLARE_HEAD_DIM

template <class T, int kHeadDim>
void launch_forward_sm90(const ForwardTask& task, cuda::Stream stream);  // 16-bit elements

// Whether Hopper's kernel takes a call with aligned operands: 16-bit elements that TMA can address. The portable kernel
// takes every call.
template <class T>
bool suits_hopper(const BlockSparseAttentionForwardParams& params, const CudaMachine& machine) {
  const AttentionShape& shape = params.shape;
  return machine.capability == 90 && has_tma_strides<T>(params.q, shape.batch, shape.num_heads, shape.query_length) &&
         has_tma_strides<T>(params.k, shape.batch, shape.num_kv_heads, shape.key_length) &&
         has_tma_strides<T>(params.v, shape.batch, shape.num_kv_heads, shape.key_length);
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

template <class T>
BackwardTask plan_backward(const BlockSparseAttentionBackwardParams& params, cuda::WorkspacePlan& workspace,
                           const cuda::Stream* stream) {
  const AttentionShape& shape = params.shape;
  AlignedHeads<T> heads(shape, workspace, stream);
  const int64_t padded_rows = round_up(shape.query_length, kPaddedQueries);
  BackwardTask task = {params, static_cast<int>(padded_head_dim<T>(shape.head_dim)), padded_rows,
                       workspace.take<float>(shape.batch * shape.num_heads * padded_rows),
                       workspace.take<float>(shape.batch * shape.num_heads * padded_rows)};
  task.params.q = heads.queries(params.q);
  task.params.k = heads.keys(params.k);
  task.params.v = heads.keys(params.v);
  task.params.grad_out = heads.queries(params.grad_out);
  task.params.out = heads.queries(params.out);
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
      if constexpr (sizeof(T) == 2) {
        if (attention::suits_hopper<T>(task.params, call.machine)) {
          return attention::launch_forward_sm90<T, kHeadDim>(task, call.stream);
        }
      }
      attention::launch_forward_sm80<T, kHeadDim>(task, call.stream);
    });
  });
}

size_t block_sparse_attention_backward_workspace_cuda(const BlockSparseAttentionBackwardParams& params,
                                                      const CudaMachine&) {
  return with_dtype(params.dtype, [&]<class T>(T) {
    cuda::WorkspacePlan workspace;
    attention::plan_backward<T>(params, workspace, nullptr);
    return workspace.used();
  });
}

void run_block_sparse_attention_backward_cuda(const BlockSparseAttentionBackwardParams& params, const CudaCall& call) {
  with_dtype(params.dtype, [&]<class T>(T) {
    cuda::WorkspacePlan workspace(call.workspace);
    const attention::BackwardTask task = attention::plan_backward<T>(params, workspace, &call.stream);
    attention::with_head_dim(params.shape.head_dim, [&]<int kHeadDim>(std::integral_constant<int, kHeadDim>) {
      attention::launch_statistics_sm80<T, kHeadDim>(task, call.stream);
      if (params.grad_k != nullptr || params.grad_v != nullptr) {
        attention::launch_backward_sm80<T, kHeadDim, true>(task, call.stream);
      }
      if (params.grad_q != nullptr) attention::launch_backward_sm80<T, kHeadDim, false>(task, call.stream);
    });
  });
}

}  // namespace tokcore
