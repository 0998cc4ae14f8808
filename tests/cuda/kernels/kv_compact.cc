// kv_compact on CUDA for pytest: the launcher, on addresses of arrays.
#include "kv_cache/kv_compact_cuda.cuh"

#include "bindings.h"
#include "kernels/kv_cache.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

KvCompactCudaParams compact_params(const py::dict& values) {
  KvCompactCudaParams params = {};
  Fields fields(values);
  fields.nested("cache", [&](Fields& inner) { simt::fill(params.cache, inner); });
  fields("num_layers", params.num_layers);
  fields("nodes", params.nodes);
  fields("accepted", params.accepted);
  fields("parents", params.parents);
  fields("counts", params.counts);
  fields("most_accepted", params.most_accepted);
  fields("most_nodes", params.most_nodes);
  return params;
}

const Bindings bindings([](py::module_& m) {
  py::class_<KvCompactCudaParams>(m, "KvCompact").def(py::init(&compact_params));
  m.def("workspace", &kv_compact_workspace_cuda);
  m.def("run", [](const KvCompactCudaParams& params, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_kv_compact_cuda(params, pointer<void>(workspace), nullptr);
  });
});

}  // namespace
}  // namespace tokcore::simt
