// paro_attention on CUDA for pytest: the launcher, on addresses of arrays.
#include "attention/paro_attention_launch_cuda.cuh"
#include "bindings.h"
#include "kernels/paro.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

ParoAttentionParams attention_params(const py::dict& values) {
  ParoAttentionParams params = {};
  Fields fields(values);
  fill_paro(params, fields);
  fill(params.mask, fields);
  fields("scale", params.scale);
  fields("out", params.out);
  fields("lse", params.lse);
  return params;
}

const Bindings bindings([](py::module_& m) {
  py::class_<ParoAttentionParams>(m, "ParoAttention").def(py::init(&attention_params));
  m.def("workspace", &paro_attention_workspace_cuda);
  m.def("run", [](const ParoAttentionParams& params, const CudaMachine& machine, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_paro_attention_cuda(params, {machine, pointer<void>(workspace), nullptr});
  });
});

}  // namespace
}  // namespace tokcore::simt
