// The launcher that the torch-facing entry calls: by element type and head size. Included once by a .cu file, and once
// by the tests for the execution on the CPU.
#pragma once

#include "attention/attention_block_scores_sm80.cuh"
#include "tokcore/attention/attention_cuda.h"

namespace tokcore {
namespace attention {

#define TOKCORE_DECLARE_ELEMENT(element)                                                             \
  extern template void launch_block_scores_sm80<element, 64>(const BlockScoresTask&, cuda::Stream);  \
  extern template void launch_block_scores_sm80<element, 128>(const BlockScoresTask&, cuda::Stream); \
  extern template void launch_block_scores_sm80<element, 256>(const BlockScoresTask&, cuda::Stream);
TOKCORE_DECLARE_ELEMENT(BFloat16)
TOKCORE_DECLARE_ELEMENT(Float16)
TOKCORE_DECLARE_ELEMENT(float)
#undef TOKCORE_DECLARE_ELEMENT

// The task of a call with aligned operands; without a stream only the workspace is planned. The partials are those of
// as many blocks as run at a time.
template <class T, int kHeadDim>
BlockScoresTask plan_block_scores(const AttentionBlockScoresParams& params, const CudaMachine& machine,
                                  cuda::WorkspacePlan& workspace, const cuda::Stream* stream) {
  const AttentionShape& shape = params.shape;
  AlignedHeads<T> heads(shape, workspace, stream);
  BlockScoresTask task = {params, static_cast<int>(padded_head_dim<T>(shape.head_dim)), ScoreScale::of(params.scale)};
  task.params.q = heads.queries(params.q);
  task.params.k = heads.keys(params.k);
  const int64_t tiles = shape.batch * shape.num_heads * ceil_div(shape.query_length, kScoredQueries);
  const int64_t at_a_time =
      int64_t{machine.multiprocessors} * BlockScoresTileSm80<T, kHeadDim>::kBlocksPerMultiprocessor;
  // No more tiles than a grid could have blocks, though fewer blocks take them.
  task.num_tiles = static_cast<int>(cuda::launch_over(tiles, 1, 1, nullptr, "attention_block_scores_sm80").grid.x);
  task.num_blocks = static_cast<int>(min(tiles, at_a_time));
  task.partials =
      workspace.take<BlockPartial>(task.num_blocks * ceil_div(shape.key_length, params.block_n) * kScoredQueries);
  return task;
}

// Calls work(type, integral_constant<int, head size>) of the kernel that a call takes.
template <class Work>
auto with_block_scores_kernel(const AttentionBlockScoresParams& params, Work&& work) {
  with_dtype(params.dtype, [&]<class T>(T type) {
    with_head_dim(params.shape.head_dim, [&](auto head_dim) { work(type, head_dim); });
  });
}

}  // namespace attention

size_t attention_block_scores_workspace_cuda(const AttentionBlockScoresParams& params, const CudaMachine& machine) {
  cuda::WorkspacePlan workspace;
  attention::with_block_scores_kernel(params, [&]<class T, int kHeadDim>(T, std::integral_constant<int, kHeadDim>) {
    attention::plan_block_scores<T, kHeadDim>(params, machine, workspace, nullptr);
  });
  return workspace.used();
}

void run_attention_block_scores_cuda(const AttentionBlockScoresParams& params, const CudaCall& call) {
  cuda::WorkspacePlan workspace(call.workspace);
  attention::with_block_scores_kernel(params, [&]<class T, int kHeadDim>(T, std::integral_constant<int, kHeadDim>) {
    attention::launch_block_scores_sm80<T, kHeadDim>(
        attention::plan_block_scores<T, kHeadDim>(params, call.machine, workspace, &call.stream), call.stream);
  });
}

}  // namespace tokcore
