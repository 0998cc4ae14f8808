// kv_retier on CUDA for pytest: the launcher, on addresses of arrays.
#include "kv_cache/kv_retier_cuda.cuh"

#include "bindings.h"
#include "kernels/kv_cache.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

KvRetierParams retier_params(const py::dict& values) {
  KvRetierParams params = {};
  Fields fields(values);
  fields.nested("cache", [&](Fields& inner) { simt::fill(params.cache, inner); });
  fields("scores", params.scores);
  fields("stride_scores_sequence", params.stride_scores_sequence);
  fields("stride_scores_head", params.stride_scores_head);
  fields("num_positions", params.num_positions);
  fields("high_pages", params.high_pages);
  return params;
}

const Bindings bindings([](py::module_& m) {
  py::class_<KvRetierParams>(m, "KvRetier").def(py::init(&retier_params));
  m.def("workspace", &kv_retier_workspace_cuda);
  m.def("run", [](const KvRetierParams& params, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_kv_retier_cuda(params, pointer<void>(workspace), nullptr);
  });
});

}  // namespace
}  // namespace tokcore::simt
