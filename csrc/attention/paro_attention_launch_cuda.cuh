// The launcher that the torch-facing entry calls: by formats and head size. Included once by a .cu file, and once by
// the tests for the execution on the CPU.
#pragma once

#include "attention/attention_scale.cuh"
#include "attention/paro_widen_cuda.cuh"
#include "tokcore/attention/paro_cuda.h"

namespace tokcore {
namespace attention {

template <class QK, class PV, int kHeadDim>
void launch_paro_attention_sm80(const ParoTask& task, cuda::Stream stream);

#define TOKCORE_DECLARE_PARO(qk, pv)                                                           \
  extern template void launch_paro_attention_sm80<qk, pv, 64>(const ParoTask&, cuda::Stream);  \
  extern template void launch_paro_attention_sm80<qk, pv, 128>(const ParoTask&, cuda::Stream); \
  extern template void launch_paro_attention_sm80<qk, pv, 256>(const ParoTask&, cuda::Stream);
TOKCORE_DECLARE_PARO(int8_t, int8_t)
TOKCORE_DECLARE_PARO(int8_t, BFloat16)
TOKCORE_DECLARE_PARO(BFloat16, int8_t)
TOKCORE_DECLARE_PARO(BFloat16, BFloat16)
#undef TOKCORE_DECLARE_PARO

// Without a stream only the workspace is planned.
inline ParoTask plan_paro_attention(const ParoAttentionParams& params, cuda::WorkspacePlan& workspace,
                                    const cuda::Stream* stream) {
  const ParoShape& shape = params.shape;
  ParoTask task = {params};
  task.orders = ParoOrders::of(params.grid, params.permutation, shape.num_kv_heads);
  task.factor = params.scale * cuda::kLog2E;
  WidenedOperands operands(task.params, workspace, stream);
  operands.widen();
  task.walk.shape = {shape.batch, shape.num_heads, shape.num_kv_heads, shape.length, shape.length, shape.head_dim};
  task.walk.mask = operands.keep_text();
  return task;
}

template <class QK, class PV>
void launch_paro_attention(const ParoTask& task, cuda::Stream stream) {
  const int64_t head_dim = task.params.shape.head_dim;
  if (head_dim <= 64) return launch_paro_attention_sm80<QK, PV, 64>(task, stream);
  if (head_dim <= 128) return launch_paro_attention_sm80<QK, PV, 128>(task, stream);
  launch_paro_attention_sm80<QK, PV, 256>(task, stream);
}

}  // namespace attention

size_t paro_attention_workspace_cuda(const ParoAttentionParams& params, const CudaMachine&) {
  cuda::WorkspacePlan workspace;
  attention::plan_paro_attention(params, workspace, nullptr);
  return workspace.used();
}

void run_paro_attention_cuda(const ParoAttentionParams& params, const CudaCall& call) {
  cuda::WorkspacePlan workspace(call.workspace);
  const attention::ParoTask task = attention::plan_paro_attention(params, workspace, &call.stream);
  const bool byte_scores = task.params.qk == ParoFormat::kInt8, byte_values = task.params.pv == ParoFormat::kInt8;
  const auto launch = [&]<class QK>(QK) {
    byte_values ? attention::launch_paro_attention<QK, int8_t>(task, call.stream)
                : attention::launch_paro_attention<QK, BFloat16>(task, call.stream);
  };
  byte_scores ? launch(int8_t{}) : launch(BFloat16{});
}

}  // namespace tokcore
