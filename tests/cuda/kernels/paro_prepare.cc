// paro_prepare on CUDA for pytest: the launcher, on addresses of arrays.
#include "attention/paro_prepare_cuda.cuh"

#include "bindings.h"
#include "kernels/paro.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

ParoPrepareParams prepare_params(const py::dict& values) {
  ParoPrepareParams params = {};
  Fields fields(values);
  fill_paro(params, fields);
  fill(params.q, "q", fields);
  fill(params.k, "k", fields);
  fill(params.v, "v", fields);
  fields("k_mean", params.k_mean);
  fields.nested("rotation", [&](Fields& rotation) {
    rotation("cos", params.rotation.cos);
    rotation("sin", params.rotation.sin);
    rotation("width", params.rotation.width);
    rotation("first", params.rotation.first);
    rotation("rows", params.rotation.rows);
    rotation("interleaved", params.rotation.interleaved);
  });
  return params;
}

const Bindings bindings([](py::module_& m) {
  py::class_<ParoPrepareParams>(m, "ParoPrepare").def(py::init(&prepare_params));
  m.def("workspace", &paro_prepare_workspace_cuda);
  m.def("run", [](const ParoPrepareParams& params, const CudaMachine& machine, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_paro_prepare_cuda(params, {machine, pointer<void>(workspace), nullptr});
  });
});

}  // namespace
}  // namespace tokcore::simt
