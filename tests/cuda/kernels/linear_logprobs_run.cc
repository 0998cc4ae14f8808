// linear_logprobs and the chunked loss on CUDA for pytest: the launchers, on addresses of arrays.
#include "cross_entropy/linear_logprobs_launch_cuda.cuh"

#include <pybind11/stl.h>

#include "bindings.h"
#include "cross_entropy/linear_logprobs_plan_cuda.h"
#include "fields.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

void fill(LinearLogitsParams& params, Fields& fields) {
  std::string dtype;
  fields("dtype", dtype);
  params.dtype = dtype_of(dtype);
  fields("e", params.e);
  fields("c", params.c);
  fields("stride_e_row", params.stride_e_row);
  fields("stride_c_row", params.stride_c_row);
  fields("indices", params.indices);
  fields("bias", params.bias);
  fields("class_weight", params.class_weight);
  fields("num_positions", params.num_positions);
  fields("hidden_size", params.hidden_size);
  fields("vocab_size", params.vocab_size);
  fields("num_indices", params.num_indices);
  fields("shift", params.shift);
  fields("softcap", params.softcap);
  fields("temperature", params.temperature);
  fields("filter_log_eps", params.filter_log_eps);
}

LinearLogprobsForwardParams forward_params(const py::dict& values) {
  LinearLogprobsForwardParams params = {};
  Fields fields(values);
  fill(params, fields);
  fields("wants_entropy", params.wants_entropy);
  fields("wants_logit_sum", params.wants_logit_sum);
  fields("topk", params.topk);
  fields("lse", params.lse);
  fields("entropy", params.entropy);
  fields("gathered", params.gathered);
  fields("logit_sum", params.logit_sum);
  fields("topk_values", params.topk_values);
  fields("topk_indices", params.topk_indices);
  fields("kept", params.kept);
  fields("kept_words", params.kept_words);
  return params;
}

LinearLogprobsBackwardParams backward_params(const py::dict& values) {
  LinearLogprobsBackwardParams params = {};
  Fields fields(values);
  fill(params, fields);
  fields("logits", params.logits);
  fields("lse", params.lse);
  fields("grad_prob", params.grad_prob);
  fields("grad_plogp", params.grad_plogp);
  fields("grad_sum", params.grad_sum);
  fields("grad_logits", params.grad_logits);
  fields("kept", params.kept);
  fields("kept_words", params.kept_words);
  fields("grad_e", params.grad_e);
  fields("grad_c", params.grad_c);
  fields("grad_bias", params.grad_bias);
  fields("workspace_bytes", params.workspace_bytes);
  return params;
}

LinearCrossEntropyChunkedParams chunked_params(const py::dict& values) {
  LinearCrossEntropyChunkedParams params = {};
  Fields fields(values);
  fill(params, fields);
  fields("nll_scale", params.nll_scale);
  fields("smooth_scale", params.smooth_scale);
  fields("square_scale", params.square_scale);
  fields("workspace", params.workspace);
  fields("chunk_size", params.chunk_size);
  fields("lse", params.lse);
  fields("logits", params.logits);
  fields("logit_sum", params.logit_sum);
  fields("grad_e", params.grad_e);
  fields("grad_c", params.grad_c);
  fields("grad_c_sum", params.grad_c_sum);
  fields("grad_bias", params.grad_bias);
  return params;
}

CudaMachine machine(int capability, int multiprocessors) { return {capability, multiprocessors, int64_t{1} << 20}; }

const Bindings bindings([](py::module_& m) {
  py::class_<LinearLogprobsForwardParams>(m, "LinearLogprobsForward").def(py::init(&forward_params));
  py::class_<LinearLogprobsBackwardParams>(m, "LinearLogprobsBackward").def(py::init(&backward_params));
  py::class_<LinearCrossEntropyChunkedParams>(m, "LinearCrossEntropyChunked").def(py::init(&chunked_params));
  py::class_<CudaMachine>(m, "CudaMachine").def(py::init(&machine), py::arg("capability"), py::arg("multiprocessors"));

  m.def("workspace", &linear_logprobs_forward_workspace_cuda);
  m.def("workspace", &linear_logprobs_backward_workspace_cuda);
  m.def("workspace", &linear_cross_entropy_chunked_workspace_cuda);
  m.def("least_workspace", &least_backward_workspace_cuda);
  m.def("run", [](const LinearLogprobsForwardParams& params, std::optional<int64_t> ignore_index, int64_t sequence,
                  const CudaMachine& where, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_linear_logprobs_forward_cuda(params, {ignore_index, sequence}, {where, pointer<void>(workspace), nullptr});
  });
  m.def("run", [](const LinearLogprobsBackwardParams& params, std::optional<int64_t> ignore_index, int64_t sequence,
                  const CudaMachine& where, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_linear_logprobs_backward_cuda(params, {ignore_index, sequence}, {where, pointer<void>(workspace), nullptr});
  });
  m.def("run", [](const LinearCrossEntropyChunkedParams& params, std::optional<int64_t> ignore_index, int64_t sequence,
                  const CudaMachine& where, uintptr_t workspace, uintptr_t loss) {
    const py::gil_scoped_release unlocked;
    run_linear_cross_entropy_chunked_cuda(params, {ignore_index, sequence}, pointer<float>(loss),
                                          {where, pointer<void>(workspace), nullptr});
  });

  m.def("tile_in_order", [](int64_t index, int64_t rows, int64_t columns, int64_t group) {
    const cuda::TileCoordinates at = cuda::tile_in_order(index, rows, columns, group);
    return std::pair(at.row, at.column);
  });
  m.def("best_split", &cuda::best_split);
  m.def("vocab_block_of", &cross_entropy::vocab_block_of);
});

}  // namespace
}  // namespace tokcore::simt
