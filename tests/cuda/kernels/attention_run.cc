// The attention family on CUDA for pytest: the launchers, on addresses of arrays.
#include "attention/attention_block_scores_launch_cuda.cuh"
#include "attention/block_sparse_attention_launch_cuda.cuh"
#include "bindings.h"
#include "kernels/attention_fields.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

void fill(AttentionShape& shape, Fields& fields) {
  fields("batch", shape.batch);
  fields("num_heads", shape.num_heads);
  fields("num_kv_heads", shape.num_kv_heads);
  fields("query_length", shape.query_length);
  fields("key_length", shape.key_length);
  fields("head_dim", shape.head_dim);
}

void fill(BlockSparseAttentionParams& params, Fields& fields) {
  std::string dtype;
  fields("dtype", dtype);
  params.dtype = dtype_of(dtype);
  fill(params.shape, fields);
  fill(params.q, "q", fields);
  fill(params.k, "k", fields);
  fill(params.v, "v", fields);
  fill(params.mask, fields);
  fields("scale", params.scale);
  fields("causal", params.causal);
}

BlockSparseAttentionForwardParams forward_params(const py::dict& values) {
  BlockSparseAttentionForwardParams params = {};
  Fields fields(values);
  fill(params, fields);
  fields("out", params.out);
  fields("lse", params.lse);
  return params;
}

BlockSparseAttentionBackwardParams backward_params(const py::dict& values) {
  BlockSparseAttentionBackwardParams params = {};
  Fields fields(values);
  fill(params, fields);
  fill(params.grad_out, "grad_out", fields);
  fill(params.out, "out", fields);
  fields("lse", params.lse);
  fields("grad_lse", params.grad_lse);
  fields("grad_q", params.grad_q);
  fields("grad_k", params.grad_k);
  fields("grad_v", params.grad_v);
  return params;
}

AttentionBlockScoresParams scores_params(const py::dict& values) {
  AttentionBlockScoresParams params = {};
  Fields fields(values);
  std::string dtype;
  fields("dtype", dtype);
  params.dtype = dtype_of(dtype);
  fill(params.shape, fields);
  fill(params.q, "q", fields);
  fill(params.k, "k", fields);
  fields("block_m", params.block_m);
  fields("block_n", params.block_n);
  fields("scale", params.scale);
  fields("causal", params.causal);
  int statistic = 0;
  fields("statistic", statistic);
  params.statistic = static_cast<BlockStatistic>(statistic);
  fields("threshold", params.threshold);
  fields("scores", params.scores);
  return params;
}

const Bindings bindings([](py::module_& m) {
  py::class_<BlockSparseAttentionForwardParams>(m, "BlockSparseAttentionForward").def(py::init(&forward_params));
  py::class_<BlockSparseAttentionBackwardParams>(m, "BlockSparseAttentionBackward").def(py::init(&backward_params));
  py::class_<AttentionBlockScoresParams>(m, "AttentionBlockScores").def(py::init(&scores_params));

  m.def("workspace", &block_sparse_attention_forward_workspace_cuda);
  m.def("workspace", &block_sparse_attention_backward_workspace_cuda);
  m.def("workspace", &attention_block_scores_workspace_cuda);
  m.def("run", [](const BlockSparseAttentionForwardParams& params, const CudaMachine& machine, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_block_sparse_attention_forward_cuda(params, {machine, pointer<void>(workspace), nullptr});
  });
  m.def("run", [](const BlockSparseAttentionBackwardParams& params, const CudaMachine& machine, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_block_sparse_attention_backward_cuda(params, {machine, pointer<void>(workspace), nullptr});
  });
  m.def("run", [](const AttentionBlockScoresParams& params, const CudaMachine& machine, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_attention_block_scores_cuda(params, {machine, pointer<void>(workspace), nullptr});
  });
});

}  // namespace
}  // namespace tokcore::simt
